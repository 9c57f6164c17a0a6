package sim

// Result is what came of a run. Times are seconds of simulated time, ratios are over
// the fluid bound (see Bound), bytes are payload.
type Result struct {
	Nodes     int    `json:"nodes"`
	Random    uint64 `json:"random"`
	Policy    string `json:"policy"`
	BlobBytes int64  `json:"blob_bytes"` // what one node wants
	Pieces    int    `json:"pieces"`     // of all blobs
	LatencyUs int64  `json:"latency_us"`
	Whole     int    `json:"whole"`      // live honest nodes that were whole at the end
	Stuck     int    `json:"stuck"`      // live honest nodes that were not whole at the end
	OverLimit int    `json:"over_limit"` // times that a node ran or served more leases than it may
	Busy      int    `json:"busy"`       // BUSY answers

	BoundSeconds  float64 `json:"bound_seconds"`    // of the makespan: not before the last to come has had time
	Makespan      float64 `json:"makespan_seconds"` // until the last node was whole
	MakespanRatio float64 `json:"makespan_ratio"`
	Mean          float64 `json:"mean_seconds"` // of a node, from its want
	MeanRatio     float64 `json:"mean_ratio"`
	P50           float64 `json:"p50_seconds"`
	P99           float64 `json:"p99_seconds"`
	FastRatio     float64 `json:"fast_ratio"` // makespan of the nodes that are not slow, over their own bound

	OriginBytes    int64   `json:"origin_bytes"`
	OriginRatio    float64 `json:"origin_ratio"` // of blob bytes
	OriginRequests int     `json:"origin_requests"`
	SeedRatio      float64 `json:"seed_ratio"`  // bytes that seeds sent, of blob bytes
	CrossRatio     float64 `json:"cross_ratio"` // bytes between racks, of racks x blob bytes
	WasteRatio     float64 `json:"waste_ratio"` // bytes that came twice or in vain, of all
	Utilisation    float64 `json:"utilisation"` // of the nodes' and seeds' uplinks until the mean node was whole

	Events        int     `json:"events"`
	Decisions     int     `json:"decisions"`
	Leases        int     `json:"leases"`
	Cancels       int     `json:"cancels"`
	DecisionsHash string  `json:"decisions_hash"` // of all decisions, in order
	NsPerDecision float64 `json:"ns_per_decision"`
	NsPerEvent    float64 `json:"ns_per_event"`
	WallSeconds   float64 `json:"wall_seconds"`

	// Progress is how many nodes were whole at which time, in order; about 500
	// points at most.
	Progress []Point `json:"progress,omitempty"`
}

// Point is a point of Result.Progress.
type Point struct {
	Seconds float64 `json:"s"`
	Whole   int     `json:"whole"`
}
