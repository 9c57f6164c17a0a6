package server

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/damselfly-p2p/damselfly/scheduler/core"
)

type metrics struct {
	schedule  prometheus.Histogram
	events    *prometheus.CounterVec
	decisions *prometheus.CounterVec
	peers     *prometheus.GaugeVec
	leases    *prometheus.GaugeVec
	blobs     prometheus.Gauge
	wants     prometheus.Gauge
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
	}
	if reg == nil {
		return m, nil
	}
	for _, c := range []prometheus.Collector{m.schedule, m.events, m.decisions, m.peers, m.leases, m.blobs, m.wants} {
		if err := reg.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}

func (m *metrics) applied(e core.Event, took time.Duration, ds []core.Decision) {
	m.schedule.Observe(took.Seconds())
	m.events.WithLabelValues(core.EventName(e)).Inc()
	for i := range ds {
		m.decisions.WithLabelValues(ds[i].Kind.String()).Inc()
	}
}

func (m *metrics) show(s core.Stats) {
	m.peers.WithLabelValues("node").Set(float64(s.Nodes))
	m.peers.WithLabelValues("seed").Set(float64(s.Seeds))
	m.peers.WithLabelValues("unreachable").Set(float64(s.Gone))
	m.peers.WithLabelValues("quarantined").Set(float64(s.Quarantined))
	m.leases.WithLabelValues("holder").Set(float64(s.Leases - s.OriginLeases))
	m.leases.WithLabelValues("origin").Set(float64(s.OriginLeases))
	m.blobs.Set(float64(s.Blobs))
	m.wants.Set(float64(s.Wants))
}
