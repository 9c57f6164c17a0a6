package e2e

import (
	"encoding/json"
	"path/filepath"
	"strings"
	"testing"

	"github.com/damselfly-p2p/damselfly/e2e/client"
	"github.com/damselfly-p2p/damselfly/e2e/origin"
	"github.com/damselfly-p2p/damselfly/e2e/process"
	"github.com/damselfly-p2p/damselfly/e2e/sample"
)

// TestDfgetPull pulls an image with dfget through a node, as an archive that
// docker load takes and as a layout that skopeo copies; both pulls together cost
// the origin each layer once.
func TestDfgetPull(t *testing.T) {
	o := startOrigin(t, origin.Public, false)
	node := startCluster(t, o, 1, 1).Nodes[0]
	img := push(t, o, "app/img", sample.Medium(), sample.OCI)
	dir := directory(t)
	p := programs(t)
	run := func(name string, args ...string) string {
		t.Helper()
		out, err := process.Run(deadline(t), process.Spec{Name: name, Path: map[string]string{
			"dfget": filepath.Join(p.bin, "dfget"), "skopeo": p.Skopeo,
		}[name], Args: args, Dir: dir})
		must(t, err)
		return out
	}
	image := registry + "/app/img:v1"
	out := run("dfget", "pull", image, "-O", filepath.Join(dir, "img.tar"), "--mirror", node.Mirror, "--mirror-only", "--output", "json")
	var report struct{ Digest string }
	must(t, json.Unmarshal([]byte(out), &report))
	if report.Digest != img.Index.Digest && report.Digest != img.Native.Digest {
		t.Errorf("dfget reports digest %q of image %s", report.Digest, img.Index.Digest)
	}
	arrived, err := p.DockerLoad(deadline(t), client.Pull{
		Dir: filepath.Join(dir, "docker"), Registry: registry, Repository: "app/img", Tag: "v1", Archive: filepath.Join(dir, "img.tar"),
	})
	must(t, err)
	if arrived.Config != img.Native.Config.Digest {
		t.Errorf("docker loaded image %s, want %s", arrived.Config, img.Native.Config.Digest)
	}

	run("dfget", "pull", image, "-O", filepath.Join(dir, "layout"), "--mirror", node.Mirror, "--mirror-only")
	run("skopeo", "copy", "oci:"+filepath.Join(dir, "layout"), "dir:"+filepath.Join(dir, "copy"))
	raw := run("skopeo", "inspect", "--raw", "dir:"+filepath.Join(dir, "copy"))
	if !strings.Contains(raw, img.Native.Config.Digest) {
		t.Errorf("skopeo copied %s", raw)
	}
	checkOriginPaidOnce(t, o, img)
}
