package proxy

import "github.com/prometheus/client_golang/prometheus"

// metrics are the package's Prometheus metrics.
type metrics struct {
	pulls    *prometheus.CounterVec
	duration *prometheus.HistogramVec
	authz    *prometheus.CounterVec

	passthrough *prometheus.CounterVec
	stale       prometheus.Counter
}

// newMetrics makes the metrics and registers them, if reg is not nil.
func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		pulls: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "damselfly_pulls_total",
			Help: "Manifests and blobs that clients asked for with GET, by result.",
		}, []string{"result"}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "damselfly_pull_duration_seconds",
			Help:    "Time from a client's GET to the last byte of the response, of those that were served.",
			Buckets: prometheus.ExponentialBuckets(0.001, 4, 10), // 1 ms to 262 s
		}, []string{"kind"}),
		authz: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "damselfly_authz_checks_total",
			Help: "Checks whether a client may read a digest, by result.",
		}, []string{"result"}),
		passthrough: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "damselfly_passthrough_total",
			Help: "Clients' requests that went to the origin as they were, by reason; unknown is no doubt but a tag, or what is not held.",
		}, []string{"reason"}),
		stale: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "damselfly_stale_total",
			Help: "Answers given from here because the registry did not answer.",
		}),
	}
	for _, r := range reasons() {
		m.passthrough.WithLabelValues(string(r))
	}
	for _, r := range []string{resultHit, resultMiss, resultPassed, resultDenied, resultNotFound, resultLimited, resultFailed, resultShort, resultAborted} {
		m.pulls.WithLabelValues(r)
	}
	for _, r := range []string{authzPublic, authzGranted, authzAllowed, authzRefused, authzError} {
		m.authz.WithLabelValues(r)
	}
	if reg == nil {
		return m, nil
	}
	for _, c := range []prometheus.Collector{m.pulls, m.duration, m.authz, m.passthrough, m.stale} {
		if err := reg.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}
