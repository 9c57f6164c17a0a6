package origin

import (
	"errors"
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	requests *prometheus.CounterVec
	bytes    prometheus.Counter
}

// newMetrics makes the metrics and registers them with reg, which may be nil.
// Clients that share a registerer share the metrics.
func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "damselfly_origin_requests_total",
			Help: "Requests sent to origins, each redirect and retry by itself, by class of the answer's status (2xx, 3xx, 4xx, 5xx) or error.",
		}, []string{"code_class"}),
		bytes: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "damselfly_origin_bytes_total",
			Help: "Bytes of bodies received from origins.",
		}),
	}
	if reg == nil {
		return m, nil
	}
	var err error
	if m.requests, err = register(reg, m.requests); err != nil {
		return nil, err
	}
	if m.bytes, err = register(reg, m.bytes); err != nil {
		return nil, err
	}
	return m, nil
}

func register[C prometheus.Collector](reg prometheus.Registerer, c C) (C, error) {
	err := reg.Register(c)
	if have := (prometheus.AlreadyRegisteredError{}); errors.As(err, &have) {
		if old, ok := have.ExistingCollector.(C); ok {
			return old, nil
		}
	}
	return c, err
}

func (m *metrics) count(status int) {
	m.requests.WithLabelValues(fmt.Sprintf("%dxx", status/100)).Inc()
}
