package store

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"
)

// Why a blob was evicted: the values of the label reason.
const (
	evictLimit   = "limit"   // to stay within Config.MaxBytes
	evictFull    = "full"    // the disk was full
	evictDamaged = "damaged" // the disk lost it, or its sidecar
)

// metrics are the store's figures, registered on Config.Registerer.
type metrics struct {
	bytes     prometheus.Gauge
	limit     prometheus.Gauge
	evictions *prometheus.CounterVec
	reg       prometheus.Registerer
}

func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		bytes: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "damselfly_cache_bytes",
			Help: "Bytes that blobs in the store take or have reserved.",
		}),
		limit: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "damselfly_cache_limit_bytes",
			Help: "Most bytes that the store takes; 0 when it has no limit of its own.",
		}),
		evictions: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "damselfly_cache_evictions_total",
			Help: "Blobs that the store gave up, by reason.",
		}, []string{"reason"}),
		reg: reg,
	}
	for _, reason := range []string{evictLimit, evictFull, evictDamaged} {
		m.evictions.WithLabelValues(reason)
	}
	if reg == nil {
		return m, nil
	}
	for i, c := range m.collectors() {
		if err := reg.Register(c); err != nil {
			for _, c := range m.collectors()[:i] {
				reg.Unregister(c)
			}
			return nil, errors.Join(errors.New("register metrics"), err)
		}
	}
	return m, nil
}

func (m *metrics) collectors() []prometheus.Collector {
	return []prometheus.Collector{m.bytes, m.limit, m.evictions}
}

func (m *metrics) close() {
	if m.reg == nil {
		return
	}
	for _, c := range m.collectors() {
		m.reg.Unregister(c)
	}
}
