package cluster

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

// The values of Pulled's keys.
const (
	FromOrigin = "origin"
	FromSeed   = "seed"
	FromPeer   = "peer"
	FromLocal  = "local"
)

// Pulled is how many bytes a member has pulled from each kind of source, by its
// metric damselfly_pull_bytes_total.
func (m *Member) Pulled(ctx context.Context) (map[string]int64, error) {
	families, err := m.Metrics(ctx)
	if err != nil {
		return nil, err
	}
	out := map[string]int64{}
	for _, metric := range families["damselfly_pull_bytes_total"].GetMetric() {
		for _, label := range metric.GetLabel() {
			if label.GetName() == "source" {
				out[label.GetValue()] += int64(metric.GetCounter().GetValue())
			}
		}
	}
	return out, nil
}

// Sum is all the bytes of what Pulled returned.
func Sum(pulled map[string]int64) int64 {
	var n int64
	for _, bytes := range pulled {
		n += bytes
	}
	return n
}

// Metrics is what the member's /metrics shows, by name.
func (m *Member) Metrics(ctx context.Context) (map[string]*dto.MetricFamily, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+m.Ops+"/metrics", nil)
	if err != nil {
		return nil, fmt.Errorf("metrics of %s: %w", m.Name, err)
	}
	resp, err := m.client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("metrics of %s: %w", m.Name, err)
	}
	defer resp.Body.Close()
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(resp.Body)
	if err != nil {
		return nil, fmt.Errorf("metrics of %s: %w", m.Name, err)
	}
	return families, nil
}

// Gauge is the value of one of the member's gauges or counters; labels are name and
// value in turn. It is 0 where there is no such series.
func (m *Member) Gauge(ctx context.Context, name string, labels ...string) (float64, error) {
	families, err := m.Metrics(ctx)
	if err != nil {
		return 0, err
	}
	for _, metric := range families[name].GetMetric() {
		fits := true
		for i := 0; i < len(labels); i += 2 {
			fits = fits && slices.ContainsFunc(metric.GetLabel(), func(l *dto.LabelPair) bool {
				return l.GetName() == labels[i] && l.GetValue() == labels[i+1]
			})
		}
		if fits {
			return metric.GetGauge().GetValue() + metric.GetCounter().GetValue(), nil
		}
	}
	return 0, nil
}

// ID is the peer ID of a member that has joined, from its certificate.
func (m *Member) ID() (string, error) {
	content, err := os.ReadFile(filepath.Join(m.DataDir, "identity", "node.crt"))
	if err != nil {
		return "", fmt.Errorf("peer ID of %s: %w", m.Name, err)
	}
	block, _ := pem.Decode(content)
	if block == nil {
		return "", fmt.Errorf("peer ID of %s: its certificate is no PEM", m.Name)
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return "", fmt.Errorf("peer ID of %s: %w", m.Name, err)
	}
	return cert.Subject.CommonName, nil
}
