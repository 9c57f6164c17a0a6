package e2e

import (
	"context"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/damselfly-p2p/damselfly/e2e/client"
	"github.com/damselfly-p2p/damselfly/e2e/origin"
	"github.com/damselfly-p2p/damselfly/e2e/puller"
	"github.com/damselfly-p2p/damselfly/e2e/sample"
)

// TestPull pulls with every client from every kind of registry through a node:
// the image arrives, the origin pays once, and where it asks for a password
// nobody without one gets what the node has.
func TestPull(t *testing.T) {
	for _, kind := range []origin.Kind{origin.Public, origin.Basic, origin.Token} {
		t.Run(string(kind), func(t *testing.T) {
			o := startOrigin(t, kind, false)
			node := startNode(t, o)
			for _, c := range client.All(programs(t).Programs.Programs) {
				t.Run(c.Name, func(t *testing.T) {
					t.Parallel()
					pullRow(t, o, node, c)
				})
			}
		})
	}
}

func pullRow(t *testing.T, o *origin.Origin, node client.Node, c client.Client) {
	repository, format := "app/"+name(t), sample.OCI
	if c.Hub {
		repository = "library/" + name(t)
	}
	if c.Docker {
		format = sample.Docker
	}
	img := push(t, o, repository, sample.Medium(), format)
	dir := directory(t)
	pull := func(ctx context.Context, dirName, user string) (client.Arrived, error) {
		p := client.Pull{Dir: filepath.Join(dir, dirName), Node: node, CAFile: o.CAFile, Registry: registry, Repository: repository, Tag: "v1"}
		if user != "" {
			p.User = client.User{Name: user, Password: origin.Password}
		}
		return c.Pull(ctx, p)
	}
	ctx := deadline(t)
	user := origin.Reader
	if o.Kind == origin.Public {
		user = ""
	}
	if o.Kind != origin.Public && c.Anonymous {
		// Somebody else has pulled the image through this node.
		somebody := puller.Puller{Base: node.Mirror, Registry: registry, Authorize: o.As(user)}
		_, err := somebody.Pull(ctx, repository, "v1")
		must(t, err)
	} else {
		start := time.Now()
		arrived, err := pull(ctx, "1", user)
		must(t, err)
		t.Logf("%.1f s", time.Since(start).Seconds())
		checkArrived(t, img, arrived)
	}
	if os.Getenv(envDirect) == "" {
		checkOriginPaidOnce(t, o, img)
	}
	if o.Kind == origin.Public {
		return
	}
	before := o.Counts().Bytes(layerDigests(img)...)
	for i, user := range []string{"", origin.Stranger} {
		if c.Anonymous && user != "" {
			continue
		}
		if _, err := pull(ctx, string(rune('2'+i)), user); err == nil {
			t.Errorf("user %q pulled what only %s may", user, origin.Reader)
		}
		checkRefused(t, o, node.Mirror, img, repository, user)
	}
	if after := o.Counts().Bytes(layerDigests(img)...); after != before {
		t.Errorf("the origin sent %d bytes of layers more to pulls that were refused", after-before)
	}
}

func checkArrived(t *testing.T, img *sample.Image, got client.Arrived) {
	t.Helper()
	want := client.Arrived{Index: img.Index.Digest, Manifest: img.Native.Digest, Config: img.Native.Config.Digest}
	if got == (client.Arrived{}) {
		t.Error("the client does not say what arrived")
	}
	for _, f := range []struct{ what, got, want string }{
		{"index", got.Index, want.Index}, {"manifest", got.Manifest, want.Manifest}, {"config", got.Config, want.Config},
	} {
		if f.got != "" && f.got != f.want {
			t.Errorf("the client has %s %s, want %s", f.what, f.got, f.want)
		}
	}
}

// checkRefused asks a mirror for each manifest and blob of an image by its digest,
// as somebody who knows the digests but has no right to them, and by each way to
// name the registry.
func checkRefused(t *testing.T, o *origin.Origin, mirror string, img *sample.Image, repository, user string) {
	t.Helper()
	authorization, err := o.Authorization(user, repository)
	if err != nil {
		t.Fatal(err)
	}
	names := []string{
		"manifests/v1", "manifests/" + img.Index.Digest, "manifests/" + img.Native.Digest, "blobs/" + img.Native.Config.Digest,
	}
	for _, d := range layerDigests(img) {
		names = append(names, "blobs/"+d)
	}
	for _, name := range names {
		for _, way := range []struct{ ns, path string }{
			{registry, "/v2/" + repository + "/" + name},
			{"", "/v2/" + registry + "/" + repository + "/" + name},
			{"", "/v2/" + repository + "/" + name}, // Docker Hub, which is this origin too
		} {
			p := puller.Puller{Base: mirror, Registry: way.ns, Authorization: authorization}
			_, err := p.Get(t.Context(), way.path)
			var refused *puller.StatusError
			if !errors.As(err, &refused) {
				t.Errorf("user %q got %s (ns=%s) from %s: %v", user, way.path, way.ns, mirror, err)
				continue
			}
			switch refused.Code {
			case http.StatusUnauthorized, http.StatusForbidden, http.StatusNotFound:
			default:
				t.Errorf("user %q at %s (ns=%s): %v, want 401, 403 or 404", user, mirror, way.ns, refused)
			}
		}
	}
}
