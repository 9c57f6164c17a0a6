package server

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
	damselflyv1 "github.com/damselfly-p2p/damselfly/proto/damselfly/v1"
	"github.com/damselfly-p2p/damselfly/scheduler/core"
)

// Bounds of what a node may say, beside those that its blobs set.
const (
	maxName  = 256  // address, registry, repository, place names
	maxURL   = 8192 // bytes of an origin's URL
	maxEvent = 4096 // events in one message
)

// decoder turns the messages of one node into events of the core. It checks
// everything against the blob's layout before it allocates for it; an error names
// the field.
type decoder struct {
	node string
	seed bool

	// Of raw.
	lately lately
	err    error
}

// attend reads the first event of a stream.
func (d decoder) attend(m *damselflyv1.NodeMessage) (*core.Attend, error) {
	if len(m.GetEvents()) == 0 {
		return nil, fmt.Errorf("the first message must hold an attend event")
	}
	a := m.GetEvents()[0].GetAttend()
	switch {
	case a == nil:
		return nil, fmt.Errorf("the first event must be attend")
	case a.GetProtocol() != Protocol:
		return nil, fmt.Errorf("attend.protocol: this scheduler speaks version %d, the node %d; run releases that are next to each other", Protocol, a.GetProtocol())
	}
	for name, v := range map[string]string{
		"address": a.GetAddress(), "region": a.GetRegion(), "zone": a.GetZone(), "rack": a.GetRack(), "release": a.GetRelease(), "host": a.GetHost(),
	} {
		if len(v) > maxName {
			return nil, fmt.Errorf("attend.%s: %d bytes, at most %d are taken", name, len(v), maxName)
		}
	}
	if err := address(a.GetAddress()); err != nil {
		return nil, err
	}
	return &core.Attend{
		Node: d.node, Seed: d.seed, Address: a.GetAddress(),
		UploadSlots: int(min(a.GetUploadSlots(), 1<<16)), DownloadSlots: int(min(a.GetDownloadSlots(), 1<<16)),
		Region: a.GetRegion(), Zone: a.GetZone(), Rack: a.GetRack(),
	}, nil
}

// address checks what other nodes will dial: host:port and nothing that a dialer
// could take for another kind of target.
func address(s string) error {
	host, port, err := net.SplitHostPort(s)
	if err == nil {
		_, err = strconv.ParseUint(port, 10, 16)
	}
	if _, ip := netip.ParseAddr(host); err != nil || host == "" || ip != nil && strings.ContainsAny(host, ":/%@ ") {
		return fmt.Errorf("attend.address: %q is no host:port that other nodes could dial", s)
	}
	return nil
}

// message is a node's message as the owner of the state takes it.
type message struct {
	events []core.Event
	pings  []uint64
	memory *memory // that events use; nil: their own
}

func (d decoder) message(m *damselflyv1.NodeMessage) (message, error) {
	if len(m.GetEvents()) > maxEvent {
		return message{}, fmt.Errorf("%d events in one message, at most %d are taken", len(m.GetEvents()), maxEvent)
	}
	out := message{events: make([]core.Event, 0, len(m.GetEvents()))}
	for _, e := range m.GetEvents() {
		if p := e.GetPing(); p != nil {
			out.pings = append(out.pings, p.GetNumber())
			continue
		}
		event, err := d.event(e)
		if err != nil {
			return message{}, err
		}
		if event != nil {
			out.events = append(out.events, event)
		}
	}
	return out, nil
}

// event is nil for an event that this release does not know.
func (d decoder) event(e *damselflyv1.NodeEvent) (core.Event, error) {
	switch e := e.GetEvent().(type) {
	case *damselflyv1.NodeEvent_Attend:
		return nil, fmt.Errorf("attend: only the first event of a stream may be one")
	case *damselflyv1.NodeEvent_Want:
		return d.want(e.Want)
	case *damselflyv1.NodeEvent_Unwant:
		g, err := digest("unwant", e.Unwant.GetDigest())
		return &core.Unwant{Node: d.node, Digest: g}, err
	case *damselflyv1.NodeEvent_Have:
		return d.have(e.Have)
	case *damselflyv1.NodeEvent_Drop:
		g, err := digest("drop", e.Drop.GetDigest())
		return &core.Drop{Node: d.node, Digest: g}, err
	case *damselflyv1.NodeEvent_Ending:
		return &core.Ending{Node: d.node, Lease: e.Ending.GetLease()}, nil
	case *damselflyv1.NodeEvent_Slots:
		return &core.Slots{
			Node: d.node, Upload: int(min(e.Slots.GetUpload(), 1<<16)), Download: int(min(e.Slots.GetDownload(), 1<<16)),
		}, nil
	case *damselflyv1.NodeEvent_Done:
		done := d.done(e.Done.GetLease(), e.Done.GetBytes(), e.Done.GetMicroseconds())
		return &done, nil
	case *damselflyv1.NodeEvent_Failed:
		return &core.Failed{
			Node: d.node, Lease: e.Failed.GetLease(), Reason: core.Reason(min(max(e.Failed.GetReason(), 0), 255)),
			Status:     int(min(e.Failed.GetStatus(), 999)),
			RetryAfter: core.Time(min(e.Failed.GetRetryAfterMs(), uint64(24*time.Hour/time.Millisecond))) * core.Millisecond,
		}, nil
	}
	return nil, nil
}

func (d decoder) want(w *damselflyv1.Want) (core.Event, error) {
	g, l, err := layout("want", w.GetDigest(), w.GetSize())
	if err != nil {
		return nil, err
	}
	runs, err := readRuns("want.runs", l, w.GetRuns())
	if err != nil {
		return nil, err
	}
	urgent, err := readRuns("want.urgent", l, w.GetUrgent())
	if err != nil {
		return nil, err
	}
	from, err := origin(w.GetOrigin())
	return &core.Want{
		Node: d.node, Digest: g, Size: l.Size(), Runs: runs, Origin: from,
		Urgent: urgent, Priority: core.Priority(min(max(w.GetPriority(), 0), 255)),
	}, err
}

func (d decoder) have(h *damselflyv1.Have) (core.Event, error) {
	g, l, err := layout("have", h.GetDigest(), h.GetSize())
	if err != nil {
		return nil, err
	}
	runs, err := readRuns("have.runs", l, h.GetRuns())
	if err != nil {
		return nil, err
	}
	if err := checkLinks(g, l, uint64(h.GetFirstLink()), h.GetLinks()); err != nil {
		return nil, err
	}
	return &core.Have{
		Node: d.node, Digest: g, Size: l.Size(), Runs: runs,
		FirstLink: int(h.GetFirstLink()), Links: h.GetLinks(), Sealed: h.GetSealed(),
	}, nil
}

func (d decoder) done(lease, bytes, microseconds uint64) core.Done {
	return core.Done{
		Node: d.node, Lease: lease, Bytes: int64(min(bytes, blob.MaxSize)),
		Time: core.Time(min(microseconds, 1<<40)) * core.Microsecond,
	}
}

func checkLinks(g blob.Digest, l blob.Layout, first uint64, links []byte) error {
	n := len(links) / g.LinkSize()
	if len(links)%g.LinkSize() != 0 || int64(first)+int64(n) > int64(l.Pieces()) {
		return fmt.Errorf("have.links: %d bytes from link %d; the blob has %d links of %d bytes", len(links), first, l.Pieces(), g.LinkSize())
	}
	return nil
}

func digest(field, s string) (blob.Digest, error) {
	g, err := blob.ParseDigest(s)
	if err != nil {
		return "", fmt.Errorf("%s.%w", field, err)
	}
	return g, nil
}

func layout(field, s string, size uint64) (blob.Digest, blob.Layout, error) {
	g, err := digest(field, s)
	if err != nil {
		return "", blob.Layout{}, err
	}
	if size > blob.MaxSize {
		return "", blob.Layout{}, fmt.Errorf("%s.size: %d bytes, the largest blob has %d", field, size, int64(blob.MaxSize))
	}
	l, err := blob.NewLayout(int64(size))
	return g, l, err
}

func readRuns(field string, l blob.Layout, wire []*damselflyv1.Run) ([]blob.Run, error) {
	if len(wire) > l.Pieces() {
		return nil, fmt.Errorf("%s: %d runs of a blob of %d pieces", field, len(wire), l.Pieces())
	}
	out := make([]blob.Run, 0, len(wire))
	for _, r := range wire {
		out = append(out, blob.Run{First: int(r.GetFirst()), Count: int(r.GetCount())})
	}
	if err := checkRuns(field, l, out); err != nil {
		return nil, err
	}
	return merged(out), nil
}

// merged is the same pieces in runs that do not overlap, in order: who names a piece often
// makes the state no more work, nor the trace longer. It changes runs.
func merged(runs []blob.Run) []blob.Run {
	if slices.IsSortedFunc(runs, func(a, b blob.Run) int { return a.First - b.First }) && !overlap(runs) {
		return runs
	}
	slices.SortFunc(runs, func(a, b blob.Run) int { return a.First - b.First })
	out := runs[:0]
	for _, r := range runs {
		if n := len(out); n > 0 && r.First <= out[n-1].End() {
			out[n-1].Count = max(out[n-1].End(), r.End()) - out[n-1].First
		} else {
			out = append(out, r)
		}
	}
	return out
}

// overlap reports whether any of the runs, which are in order, begins within the one before.
func overlap(runs []blob.Run) bool {
	for i := 1; i < len(runs); i++ {
		if runs[i].First < runs[i-1].End() {
			return true
		}
	}
	return false
}

func checkRuns(field string, l blob.Layout, runs []blob.Run) error {
	if len(runs) > l.Pieces() {
		return fmt.Errorf("%s: %d runs of a blob of %d pieces", field, len(runs), l.Pieces())
	}
	for _, r := range runs {
		if err := l.Check(r); err != nil {
			return fmt.Errorf("%s: %w", field, err)
		}
	}
	return nil
}

func origin(o *damselflyv1.Origin) (*core.Origin, error) {
	if o == nil {
		return nil, nil
	}
	for name, v := range map[string]string{"registry": o.GetRegistry(), "repository": o.GetRepository()} {
		if len(v) > maxName {
			return nil, fmt.Errorf("want.origin.%s: %d bytes, at most %d are taken", name, len(v), maxName)
		}
	}
	if len(o.GetUrl()) > maxURL {
		return nil, fmt.Errorf("want.origin.url: %d bytes, at most %d are taken", len(o.GetUrl()), maxURL)
	}
	return &core.Origin{
		Kind: core.OriginKind(min(max(o.GetKind(), 0), 255)), Registry: o.GetRegistry(),
		Repository: o.GetRepository(), URL: o.GetUrl(), Private: o.GetPrivate(),
	}, nil
}
