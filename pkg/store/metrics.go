package store

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"
)

// Why a blob was evicted: the values of the label reason.
const (
	evictLimit   = "limit"   // to stay within Config.MaxBytes
	evictFull    = "full"    // the disk was full
	evictLow     = "low"     // to keep Config.KeepFree of the disk free
	evictAge     = "age"     // nobody used it for Config.MaxAge
	evictDamaged = "damaged" // the disk lost it, or its sidecar
	evictShared  = "shared"  // the runtime that it came from let go of it
)

// metrics are the store's figures, registered on Config.Registerer.
type metrics struct {
	bytes     prometheus.Gauge
	blobs     prometheus.Gauge
	limit     prometheus.Gauge
	shared    prometheus.Gauge
	twice     prometheus.Gauge
	passes    prometheus.Gauge
	scrubbed  prometheus.Counter
	rotten    prometheus.Counter
	refused   prometheus.Counter
	evictions *prometheus.CounterVec
	disk      []prometheus.Collector
	reg       prometheus.Registerer
}

// newMetrics makes the figures; disk asks the file system at each scrape.
func newMetrics(reg prometheus.Registerer, disk func() (Disk, error)) (*metrics, error) {
	m := &metrics{
		bytes:    gauge("damselfly_cache_bytes", "Bytes that blobs in the store take or have reserved."),
		blobs:    gauge("damselfly_cache_blobs", "Blobs in the store, whole or in part; each takes two inodes."),
		limit:    gauge("damselfly_cache_limit_bytes", "Most bytes that the store takes; 0 when it has no limit of its own."),
		shared:   gauge("damselfly_cache_shared_bytes", "Bytes of blobs whose file is the container runtime's too; they take no room of their own."),
		twice:    gauge("damselfly_cache_kept_twice", "1 when store.share is set and the last file of the container runtime could not be shared, because of mounts or file systems; the log says what to do. 0 otherwise."),
		passes:   gauge("damselfly_cache_scrub_ended_timestamp_seconds", "When the scrub had last proven every blob again; 0 when it has not since the start."),
		scrubbed: counter("damselfly_cache_scrubbed_bytes_total", "Bytes of held pieces that were read and proven again by the scrub."),
		rotten:   counter("damselfly_cache_rotten_pieces_total", "Pieces that the disk lost or changed; they were given up, to be fetched again."),
		refused:  counter("damselfly_cache_refused_total", "Blobs that found no room in the store or on its disk."),
		evictions: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "damselfly_cache_evictions_total",
			Help: "Blobs that the store gave up, by reason.",
		}, []string{"reason"}),
		reg: reg,
	}
	for _, g := range []struct {
		name, help string
		of         func(Disk) int64
	}{
		{"damselfly_cache_disk_bytes", "Size of the file system that the store is on.", func(d Disk) int64 { return d.Bytes }},
		{"damselfly_cache_disk_free_bytes", "Bytes that the node may still take of it.", func(d Disk) int64 { return d.Free }},
		{"damselfly_cache_disk_inodes", "Inodes of it; 0 where they are made as they are needed.", func(d Disk) int64 { return d.Files }},
		{"damselfly_cache_disk_free_inodes", "Inodes of it that are free.", func(d Disk) int64 { return d.FreeFiles }},
	} {
		m.disk = append(m.disk, prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: g.name, Help: g.help}, func() float64 {
			d, err := disk()
			if err != nil {
				return -1 // no size that a disk can have
			}
			return float64(g.of(d))
		}))
	}
	for _, reason := range []string{evictLimit, evictFull, evictLow, evictAge, evictDamaged, evictShared} {
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
	return append([]prometheus.Collector{
		m.bytes, m.blobs, m.limit, m.shared, m.twice, m.passes, m.scrubbed, m.rotten, m.refused, m.evictions,
	}, m.disk...)
}

func (m *metrics) close() {
	if m.reg == nil {
		return
	}
	for _, c := range m.collectors() {
		m.reg.Unregister(c)
	}
}

func gauge(name, help string) prometheus.Gauge {
	return prometheus.NewGauge(prometheus.GaugeOpts{Name: name, Help: help})
}

func counter(name, help string) prometheus.Counter {
	return prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
}
