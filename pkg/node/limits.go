package node

import (
	"errors"
	"fmt"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/damselfly-p2p/damselfly/pkg/config"
	"github.com/damselfly-p2p/damselfly/pkg/limit"
)

// leastLimit is what other nodes wait for: from a slower one they go on to others.
const leastLimit = config.Rate(256 << 10)

func (c LimitsConfig) validate() error {
	var errs []error
	for _, l := range []struct {
		name string
		rate config.Rate
	}{{"upload", c.Upload}, {"download", c.Download}, {"origin", c.Origin}} {
		if l.rate < 0 || l.rate > 0 && l.rate < leastLimit {
			errs = append(errs, fmt.Errorf("limits.%s is %v a second, and no piece would come in time; write 256KiB at least, such as 100MB or 800mbit, or 0 for no limit", l.name, l.rate))
		}
	}
	return errors.Join(errs...)
}

// limits are the buckets that all bytes of a node pass.
type limits struct{ upload, download, origin *limit.Bucket }

func newLimits(c LimitsConfig) *limits {
	return &limits{upload: limit.New(int64(c.Upload)), download: limit.New(int64(c.Download)), origin: limit.New(int64(c.Origin))}
}

// set changes the limits, for what runs as well.
func (l *limits) set(c LimitsConfig) {
	l.upload.Set(int64(c.Upload))
	l.download.Set(int64(c.Download))
	l.origin.Set(int64(c.Origin))
}

func (l *limits) register(reg prometheus.Registerer) {
	for name, b := range map[string]*limit.Bucket{"upload": l.upload, "download": l.download, "origin": l.origin} {
		reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "damselfly_limit_bytes_per_second", Help: "The limit of what this node moves, as configured; 0 is none.",
			ConstLabels: prometheus.Labels{"traffic": name},
		}, func() float64 { return float64(b.Limit()) }))
	}
}
