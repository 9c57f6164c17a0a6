package identity

import (
	"errors"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are those of one Identity. A nil *metrics counts nothing.
type metrics struct {
	renewals *prometheus.CounterVec
	refused  *prometheus.CounterVec
}

func newMetrics(reg prometheus.Registerer, expiry func() time.Time) (*metrics, error) {
	if reg == nil {
		return nil, nil
	}
	m := &metrics{
		renewals: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "damselfly_identity_renewals_total",
			Help: "Tries to renew this process's certificate, by result (ok, failed).",
		}, []string{"result"}),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "damselfly_identity_refused_connections_total",
			Help: "Connections refused for the other end's certificate, by reason.",
		}, []string{"reason"}),
	}
	expires := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "damselfly_identity_cert_expiry_timestamp_seconds",
		Help: "When this process's certificate expires, in seconds since 1970.",
	}, func() float64 { return float64(expiry().Unix()) })
	for _, c := range []prometheus.Collector{m.renewals, m.refused, expires} {
		if err := reg.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}

func (m *metrics) renewed(result string) {
	if m != nil {
		m.renewals.WithLabelValues(result).Inc()
	}
}

// refusedConnection counts a handshake that err ended; nil is none.
func (m *metrics) refusedConnection(err error) {
	if m == nil || err == nil {
		return
	}
	reason := reasonMalformed
	if r, ok := errors.AsType[*refusal](err); ok {
		reason = r.reason
	}
	m.refused.WithLabelValues(reason).Inc()
}

// serverMetrics are those of the Identity service. A nil one counts nothing.
type serverMetrics struct {
	issued *prometheus.CounterVec
}

func newServerMetrics(reg prometheus.Registerer) (*serverMetrics, error) {
	if reg == nil {
		return nil, nil
	}
	m := &serverMetrics{issued: prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "damselfly_identity_requests_total",
		Help: "Requests for a certificate, by method (join, renew, share_authority) and result (ok, refused, limited, failed).",
	}, []string{"method", "result"})}
	if err := reg.Register(m.issued); err != nil {
		return nil, err
	}
	return m, nil
}

func (m *serverMetrics) request(method, result string) {
	if m != nil {
		m.issued.WithLabelValues(method, result).Inc()
	}
}
