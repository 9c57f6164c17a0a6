package e2e

import (
	"encoding/xml"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sync/errgroup"

	"github.com/damselfly-p2p/damselfly/e2e/origin"
	"github.com/damselfly-p2p/damselfly/e2e/process"
)

// TestConformance runs the distribution spec's own tests against a registry, and
// against a node in front of it: what passes there passes here.
func TestConformance(t *testing.T) {
	o := startOrigin(t, origin.Public, false)
	node := startAlone(t, o).Nodes[0]
	var direct, through map[string][]string
	var group errgroup.Group
	group.Go(func() (err error) { direct, err = conform(t, o.URL, o.CAFile, "conformance/direct"); return err })
	// The registry is a part of the path: the tests know no ns=.
	group.Go(func() (err error) {
		through, err = conform(t, node.Mirror, o.CAFile, registry+"/conformance/node")
		return err
	})
	must(t, group.Wait())
	var passed int
	for name, verdicts := range direct {
		switch {
		case !allPassed(verdicts):
		case !allPassed(through[name]):
			t.Errorf("%s: %v through the node; directly it passes", name, through[name])
		default:
			passed++
		}
	}
	if t.Logf("%d of %d tests pass both ways", passed, len(direct)); passed < 100 {
		t.Errorf("%d tests pass both ways: the suite did not run", passed)
	}
}

// conform runs the tests against a registry at a URL, and returns the verdicts by
// name. A name may have several.
func conform(t *testing.T, url, caFile, repository string) (map[string][]string, error) {
	dir := directory(t)
	scheme, host, _ := strings.Cut(url, "://")
	tls := map[string]string{"http": "disabled", "https": "enabled"}[scheme]
	// It is built with the other tools. A failed test is an exit code too.
	_, failed := process.Run(deadline(t), process.Spec{
		Name: "conformance", Path: filepath.Join(filepath.Dir(programs(t).Registry), "conformance"), Dir: dir,
		Env: []string{
			"OCI_REGISTRY=" + host, "OCI_TLS=" + tls, "OCI_REPO1=" + repository + "1", "OCI_REPO2=" + repository + "2",
			"OCI_RESULTS_DIR=" + dir, "SSL_CERT_FILE=" + caFile,
		},
	})
	content, err := os.ReadFile(filepath.Join(dir, "junit.xml"))
	if err != nil {
		return nil, failed
	}
	var report struct {
		Cases []struct {
			Name   string `xml:"name,attr"`
			Status string `xml:"status,attr"`
		} `xml:"testsuite>testcase"`
	}
	if err := xml.Unmarshal(content, &report); err != nil {
		return nil, err
	}
	out := map[string][]string{}
	for _, c := range report.Cases {
		out[c.Name] = append(out[c.Name], c.Status)
	}
	return out, nil
}

func allPassed(verdicts []string) bool {
	for _, v := range verdicts {
		if v != "passed" {
			return false
		}
	}
	return len(verdicts) > 0
}
