package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"text/tabwriter"
	"time"

	"github.com/damselfly-p2p/damselfly/e2e/process"
)

// Report is what was measured. Rates are per second over the measured time, counted
// at the nodes unless said.
type Report struct {
	Streams       int     `json:"streams"`
	Seeds         int     `json:"seeds"`
	Pulling       int     `json:"pulling"`
	Swarms        int     `json:"swarms"`
	Pieces        int     `json:"pieces"`
	JoinSeconds   float64 `json:"join_seconds"`
	AttendSeconds float64 `json:"attend_seconds"`
	WantedRate    int     `json:"wanted_rate"`
	Seconds       float64 `json:"seconds"`

	DecisionsPerSecond float64 `json:"decisions_per_second"`
	LeasesPerSecond    float64 `json:"leases_per_second"`
	// By the scheduler's own /metrics.
	SchedulerDecisions float64 `json:"scheduler_decisions_per_second"`
	SchedulerEvents    float64 `json:"scheduler_events_per_second"`
	CoreMicroseconds   float64 `json:"core_us_per_event"`
	// What goes over the wire, each way.
	MessagesIn  float64 `json:"messages_to_scheduler_per_second"`
	MessagesOut float64 `json:"messages_to_nodes_per_second"`
	Pongs       float64 `json:"pongs_per_second"`
	PieceMillis float64 `json:"piece_ms"`

	Event Spread `json:"event_latency"`
	Lease Spread `json:"lease_latency"`
	Ping  Spread `json:"ping_latency"`

	SchedulerRSS     int64   `json:"scheduler_rss_bytes"`
	SchedulerPeakRSS int64   `json:"scheduler_peak_rss_bytes"`
	SchedulerCPU     float64 `json:"scheduler_cpu"` // cores
	LoadCPU          float64 `json:"load_cpu"`      // cores
	LoadRSS          int64   `json:"load_rss_bytes"`
	OtherCPU         float64 `json:"other_cpu"` // cores that the machine spent on anything else

	// From the command that denies a node until every stream has heard it, under the load.
	DenialSeconds float64 `json:"denial_seconds"`

	// Of the whole run.
	Blobs     int64 `json:"blobs_done"`
	Wants     int64 `json:"wants"`
	Leases    int64 `json:"leases"`
	Done      int64 `json:"leases_done"`
	Cancelled int64 `json:"cancelled"`
	Refused   int64 `json:"refused"`
	Shed      int64 `json:"shed"`
	Revoked   int64 `json:"revoked"`
	Silences  int64 `json:"silences"` // times that a real node might have helped itself
	Attended  int64 `json:"attended"`
	Restarts  int64 `json:"core_restarts"`
}

func seconds(d time.Duration) float64 { return math.Round(d.Seconds()*1000) / 1000 }

// moment is everything that is compared between two moments.
type moment struct {
	at                                       time.Time
	decisions, leases, messages, sent, pongs int64
	scheduler, load                          usage
	machine                                  time.Duration // of CPU, busy
	metrics                                  map[string]float64
}

func (w *world) moment(ctx context.Context, s *scheduler) (m moment, err error) {
	if m.metrics, err = s.metrics(ctx); err != nil {
		return m, err
	}
	if m.scheduler, err = used(s.pid); err != nil {
		return m, err
	}
	if m.load, err = used(0); err != nil {
		return m, err
	}
	if m.machine, err = busy(); err != nil {
		return m, err
	}
	c := &w.counts
	m.at = time.Now()
	m.decisions, m.leases, m.messages = c.decisions.Load(), c.leases.Load(), c.messages.Load()
	m.sent, m.pongs = c.sent.Load(), c.pongs.Load()
	return m, nil
}

// window measures for the configured time.
func (w *world) window(ctx context.Context, s *scheduler, r *Report) error {
	before, err := w.moment(ctx, s)
	if err != nil {
		return err
	}
	for _, l := range []*latencies{&w.events, &w.leases, &w.pings} {
		l.reset()
	}
	profiled := make(chan error, 1)
	go func() {
		if w.cfg.Profile == "" {
			profiled <- nil
			return
		}
		profiled <- s.profile(ctx, w.cfg.Profile, w.cfg.For)
	}()
	own, err := process.ProfileSelf(w.cfg.LoadProfile)
	if err != nil {
		return err
	}
	whole := pause(ctx, w.cfg.For)
	if err := own(); err != nil {
		return err
	}
	r.Event, r.Lease, r.Ping = w.events.spread(), w.leases.spread(), w.pings.spread()
	if err := <-profiled; err != nil || !whole {
		return err
	}
	after, err := w.moment(ctx, s)
	if err != nil {
		return err
	}
	w.fill(r, before, after)
	return nil
}

func (w *world) fill(r *Report, a, b moment) {
	over := b.at.Sub(a.at).Seconds()
	rate := func(a, b float64) float64 { return math.Round((b-a)/over*10) / 10 }
	metric := func(name string) float64 { return rate(a.metrics[name], b.metrics[name]) }
	r.Seconds = seconds(b.at.Sub(a.at))
	r.DecisionsPerSecond = rate(float64(a.decisions), float64(b.decisions))
	r.LeasesPerSecond = rate(float64(a.leases), float64(b.leases))
	r.SchedulerDecisions, r.SchedulerEvents = metric("damselfly_decisions_total"), metric("damselfly_events_total")
	if n := b.metrics["damselfly_events_total"] - a.metrics["damselfly_events_total"]; n > 0 {
		name := "damselfly_schedule_duration_seconds"
		r.CoreMicroseconds = math.Round((b.metrics[name]-a.metrics[name])/n*1e8) / 100
	}
	r.MessagesIn, r.MessagesOut = rate(float64(a.sent), float64(b.sent)), rate(float64(a.messages), float64(b.messages))
	r.Pongs = rate(float64(a.pongs), float64(b.pongs))
	r.PieceMillis = milliseconds(time.Duration(w.piece.Load()))
	cores := func(a, b usage) float64 { return math.Round((b.cpu-a.cpu).Seconds()/over*100) / 100 }
	r.SchedulerCPU, r.LoadCPU = cores(a.scheduler, b.scheduler), cores(a.load, b.load)
	r.OtherCPU = math.Round(((b.machine-a.machine).Seconds()/over-r.SchedulerCPU-r.LoadCPU)*100) / 100
	r.SchedulerRSS, r.SchedulerPeakRSS, r.LoadRSS = b.scheduler.rss, b.scheduler.peak, b.load.rss
	c := &w.counts
	r.Blobs, r.Wants, r.Leases, r.Done = c.blobs.Load(), c.wants.Load(), c.leases.Load(), c.done.Load()
	r.Cancelled, r.Refused, r.Shed, r.Revoked = c.cancelled.Load(), c.refused.Load(), c.shed.Load(), c.revoked.Load()
	r.Silences, r.Attended = c.silences.Load(), c.attended.Load()
	r.Restarts = int64(b.metrics["damselfly_core_restarts_total"])
}

// print writes the report as JSON or as a table.
func (r *Report) print(out io.Writer, asJSON bool) error {
	if asJSON {
		e := json.NewEncoder(out)
		e.SetIndent("", "  ")
		return e.Encode(r)
	}
	t := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	row := func(name, format string, args ...any) { fmt.Fprintf(t, "%s\t%s\n", name, fmt.Sprintf(format, args...)) }
	spread := func(name string, s Spread) {
		row(name, "p50 %.2f  p90 %.2f  p99 %.2f  p99.9 %.2f  max %.1f ms  (%d)", s.P50, s.P90, s.P99, s.P999, s.Max, s.Count)
	}
	row("streams", "%d, of these %d seeds, %d nodes that pull, in %d swarms; joined in %.1f s, attending in %.1f s", r.Streams, r.Seeds, r.Pulling, r.Swarms, r.JoinSeconds, r.AttendSeconds)
	row("decisions/s", "%.0f at the nodes, %.0f by /metrics; leases/s %.0f of %d wanted", r.DecisionsPerSecond, r.SchedulerDecisions, r.LeasesPerSecond, r.WantedRate)
	row("events/s", "%.0f, %.2f us each in the core", r.SchedulerEvents, r.CoreMicroseconds)
	row("messages/s", "%.0f to the scheduler, %.0f to nodes; %.0f pongs", r.MessagesIn, r.MessagesOut, r.Pongs)
	spread("event -> all it decided", r.Event)
	spread("Done -> next lease", r.Lease)
	spread("ping -> pong", r.Ping)
	row("denial of a node", "all streams have heard after %.3f s", r.DenialSeconds)
	row("scheduler", "%.2f cores, %d MiB, at most %d MiB", r.SchedulerCPU, r.SchedulerRSS>>20, r.SchedulerPeakRSS>>20)
	row("load", "%.2f cores, %d MiB; everything else on this machine %.2f cores", r.LoadCPU, r.LoadRSS>>20, r.OtherCPU)
	row("whole run", "%d blobs, %d wants, %d leases, %d done, %d cancelled, %d refused, %d shed, %d revoked, %d silences, %d core restarts",
		r.Blobs, r.Wants, r.Leases, r.Done, r.Cancelled, r.Refused, r.Shed, r.Revoked, r.Silences, r.Restarts)
	return t.Flush()
}
