package e2e

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"testing"

	"github.com/damselfly-p2p/damselfly/e2e/cluster"
	"github.com/damselfly-p2p/damselfly/e2e/origin"
	"github.com/damselfly-p2p/damselfly/e2e/sample"
)

const manifestType = "application/vnd.oci.image.manifest.v1+json"

// forged are manifests for a real registry that name own, which is in the repository, where
// the registry looks, and another where somebody else may.
func forged(config, own, another sample.Blob) []string {
	const head = `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json",`
	text := func(b sample.Blob) string { return fmt.Sprintf(`"size":%d,"digest":%q`, b.Size(), b.Digest) }
	typed := `"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip",`
	conf := fmt.Sprintf(`"config":{"mediaType":"application/vnd.oci.image.config.v1+json",%s}`, text(config))
	layer := func(keys string) string { return head + conf + `,"layers":[{` + typed + keys + `}]}` }
	theirs, mine := "{"+typed+text(another)+"}", "{"+typed+text(own)+"}"
	return []string{
		layer(text(another) + fmt.Sprintf(`,"Digest":%q`, own.Digest)),
		layer(text(another) + fmt.Sprintf(`,"digest":%q`, own.Digest)),
		layer(text(another) + fmt.Sprintf(`,"dige\u017ft":%q`, own.Digest)),
		layer(text(another) + fmt.Sprintf(`,"DIGEST":%q,"sIze":%d`, own.Digest, own.Size())),
		head + conf + `,"layers":[` + theirs + `],"Layers":[` + mine + `]}`,
		head + conf + `,"layers":[` + theirs + `],"layers":[` + mine + `]}`,
		head + conf + `,"layers":[` + theirs + `],"layer\u017f":[` + mine + `]}`,
		head + `"config":` + theirs + `,"Config":` + mine + `,"layers":[` + mine + `]}`,
		head + conf + `,"layers":[` + mine + `],"blobs":[` + theirs + `]}`,
		head + conf + `,"layers":[` + mine + `],"subject":` + theirs + `}`,
		layer(text(another) + `,"urls":["https://example.com/layer"]`),
		head + conf + `,"layers":[{"mediaType":"application/vnd.oci.image.layer.nondistributable.v1.tar","urls":["https://example.com/layer"],` + text(another) + `}]}`,
	}
}

// TestManifestsOpenNothingOfOthers has a user of one repository push manifests that a real
// registry takes, and that name what lies in a repository of others. Nodes that hold that,
// and one that does not, give none of it out.
func TestManifestsOpenNothingOfOthers(t *testing.T) {
	o := startOrigin(t, origin.Token, false)
	c := startCluster(t, o, 1, 3)
	secret := push(t, o, "app/secret", sample.Small(), sample.OCI)
	pullAll(t, o, c.Nodes[:2], secret, "app/secret")
	mine := push(t, o, "eve/own", sample.Small(), sample.OCI)
	authorization, err := o.PushAuthorization(origin.Reader, "eve/own") // and for nothing else
	must(t, err)
	ask := func(node *cluster.Member, path string) (int, int64) {
		t.Helper()
		req, err := http.NewRequestWithContext(deadline(t), http.MethodGet, node.Mirror+"/v2/eve/own/"+path+"?ns="+registry, nil)
		must(t, err)
		req.Header.Set("Authorization", authorization)
		req.Header.Set("Accept", manifestType)
		resp, err := node.Client().Do(req)
		must(t, err)
		defer resp.Body.Close()
		n, _ := io.Copy(io.Discard, resp.Body)
		return resp.StatusCode, n
	}
	taken := 0
	for _, another := range []sample.Blob{secret.Native.Layers[0], secret.Native.Config, secret.Native.Blob, secret.Index} {
		for i, manifest := range forged(mine.Native.Config, mine.Native.Layers[0], another) {
			tag := fmt.Sprintf("forged-%d", i)
			if !putManifest(deadline(t), t, o, authorization, tag, manifest) {
				continue
			}
			taken++
			for _, node := range c.Nodes {
				for _, path := range []string{"manifests/" + tag, "manifests/" + sample.Digest([]byte(manifest))} {
					if status, _ := ask(node, path); status != http.StatusOK {
						t.Fatalf("%s of the forged manifest: %d\n%s", path, status, manifest)
					}
				}
				for _, path := range []string{"blobs/" + another.Digest, "manifests/" + another.Digest} {
					if status, n := ask(node, path); status < 400 {
						t.Errorf("%s: %d, %d bytes of what is not the client's, after\n%s", path, status, n, manifest)
					}
				}
			}
		}
	}
	t.Logf("the registry took %d forged manifests", taken)
	if taken == 0 {
		t.Error("the registry took none, so this shows nothing")
	}
	pullAll(t, o, c.Nodes, mine, "eve/own") // nothing of the kind happens to who pulls an image
}

// putManifest reports whether the registry took a manifest.
func putManifest(ctx context.Context, t *testing.T, o *origin.Origin, authorization, tag, manifest string) bool {
	t.Helper()
	req, err := http.NewRequestWithContext(ctx, http.MethodPut, o.URL+"/v2/eve/own/manifests/"+tag, bytes.NewReader([]byte(manifest)))
	must(t, err)
	req.Header.Set("Authorization", authorization)
	req.Header.Set("Content-Type", manifestType)
	resp, err := o.Client.Do(req)
	must(t, err)
	defer resp.Body.Close()
	return resp.StatusCode == http.StatusCreated
}
