package server

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/damselfly-p2p/damselfly/scheduler/core"
)

// metrics keeps its counters at hand: looking one up by its label costs as much as
// a decision. The owner of the state alone uses it.
type metrics struct {
	schedule   prometheus.Histogram
	events     *prometheus.CounterVec
	decisions  *prometheus.CounterVec
	peers      *prometheus.GaugeVec
	leases     *prometheus.GaugeVec
	blobs      prometheus.Gauge
	wants      prometheus.Gauge
	overloaded prometheus.Gauge
	shed       prometheus.Counter
	restarts   prometheus.Counter

	eventOf    map[string]prometheus.Counter
	decisionOf map[core.DecisionKind]prometheus.Counter
	shown      core.Stats
	node, seed, unreachable, quarantined,
	holder, origin prometheus.Gauge
}

func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		schedule: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "damselfly_schedule_duration_seconds", Help: "Time that the core took for one event.",
			Buckets: prometheus.ExponentialBuckets(1e-6, 4, 10),
		}),
		events: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "damselfly_events_total", Help: "Events that the core was told, by kind.",
		}, []string{"kind"}),
		decisions: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "damselfly_decisions_total", Help: "Decisions sent to nodes, by kind.",
		}, []string{"kind"}),
		peers: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "damselfly_peers", Help: "Nodes and seeds by state: attending, and of these those that others cannot reach or that sent bad pieces.",
		}, []string{"state"}),
		leases: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "damselfly_leases", Help: "Running leases, by what they read.",
		}, []string{"source"}),
		blobs: prometheus.NewGauge(prometheus.GaugeOpts{Name: "damselfly_blobs", Help: "Blobs that some node holds or wants."}),
		wants: prometheus.NewGauge(prometheus.GaugeOpts{Name: "damselfly_wants", Help: "Blobs on their way, counted once for each node that wants them."}),
		overloaded: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "damselfly_overloaded", Help: "1 while events wait so long for the core that new wants are told to come again.",
		}),
		shed: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "damselfly_shed_wants_total", Help: "Wants that were told to come again because the scheduler was overloaded.",
		}),
		restarts: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "damselfly_core_restarts_total", Help: "Times that the core failed and began anew; the log has the event.",
		}),
		eventOf: map[string]prometheus.Counter{}, decisionOf: map[core.DecisionKind]prometheus.Counter{},
	}
	m.node, m.seed = m.peers.WithLabelValues("node"), m.peers.WithLabelValues("seed")
	m.unreachable, m.quarantined = m.peers.WithLabelValues("unreachable"), m.peers.WithLabelValues("quarantined")
	m.holder, m.origin = m.leases.WithLabelValues("holder"), m.leases.WithLabelValues("origin")
	if reg == nil {
		return m, nil
	}
	for _, c := range []prometheus.Collector{
		m.schedule, m.events, m.decisions, m.peers, m.leases, m.blobs, m.wants, m.overloaded, m.shed, m.restarts,
	} {
		if err := reg.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}

func (m *metrics) applied(e core.Event, took time.Duration, ds []core.Decision) {
	m.schedule.Observe(took.Seconds())
	name := core.EventName(e)
	c, ok := m.eventOf[name]
	if !ok {
		c = m.events.WithLabelValues(name)
		m.eventOf[name] = c
	}
	c.Inc()
	for i := range ds {
		kind := ds[i].Kind
		c, ok := m.decisionOf[kind]
		if !ok {
			c = m.decisions.WithLabelValues(kind.String())
			m.decisionOf[kind] = c
		}
		c.Inc()
	}
}

// show sets the gauges that have changed.
func (m *metrics) show(s core.Stats) {
	if s == m.shown {
		return
	}
	m.shown = s
	m.node.Set(float64(s.Nodes))
	m.seed.Set(float64(s.Seeds))
	m.unreachable.Set(float64(s.Gone))
	m.quarantined.Set(float64(s.Quarantined))
	m.holder.Set(float64(s.Leases - s.OriginLeases))
	m.origin.Set(float64(s.OriginLeases))
	m.blobs.Set(float64(s.Blobs))
	m.wants.Set(float64(s.Wants))
}
