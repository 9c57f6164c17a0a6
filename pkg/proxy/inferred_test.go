package proxy_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
	"github.com/damselfly-p2p/damselfly/pkg/proxy"
)

// A manifest is the word of whoever pushed it. Here the registry looks at nothing: whatever
// manifest eve has in her own repository, and in whatever form it names what is bob's, none of
// that is given to her, nor to anybody without a credential, nor while the registry is down.
func TestManifestOpensNothingOfOthers(t *testing.T) {
	for _, public := range []bool{false, true} {
		t.Run(fmt.Sprintf("own repository is public %v", public), func(t *testing.T) {
			w, im := privateWorld(t)
			who := eve
			if public {
				delete(w.origin.readers, "eve/own")
				who = "X-Nobody: 1"
			}
			targets := map[string]string{"blobs/" + im.layerDigest(): im.layerDigest(), "blobs/" + im.configDigest(): im.configDigest(),
				"manifests/" + im.manifestDigest(): im.manifestDigest()}
			own := []byte("{}")
			w.origin.keep("eve/own", own)
			try := func(path, when string) {
				t.Helper()
				for _, ask := range [][]string{{who}, {who, "Range: bytes=0-0"}} {
					if g := w.get("/v2/eve/own/"+path, ask...); g.status < 400 {
						t.Errorf("%s, %s: %d, %d bytes", path, when, g.status, len(g.body))
					}
				}
			}
			tricks := append(proxy.Tricks(), nested()...)
			for i, trick := range tricks {
				for path, d := range targets {
					body := strings.NewReplacer(proxy.AnotherDigest, d, proxy.OwnDigest, blob.FromBytes(own).String(),
						`"size":2,`, "", `,"size":2`, "").Replace(trick) // a wrong size would keep the content from being opened
					typ := typeManifest
					if strings.Contains(body, typeIndex) {
						typ = typeIndex
					}
					tag := fmt.Sprintf("t%d", i)
					w.origin.put("eve/own", tag, []byte(body), typ)
					w.proxy.ForgetTags()
					w.get("/v2/eve/own/manifests/"+tag, who)
					w.get("/v2/eve/own/manifests/"+blob.FromBytes([]byte(body)).String(), who)
					try(path, "after the manifest:\n"+body)
				}
			}
			w.origin.gone = true
			for path := range targets {
				try(path, "while the registry is down")
			}
		})
	}
}

// nested are manifests that name an index or a manifest of others.
func nested() []string {
	var out []string
	for _, typ := range []string{typeManifest, typeIndex} {
		for _, key := range []string{"manifests", "layers", "config", "subject", "blobs"} {
			named := fmt.Sprintf(`{"mediaType":%q,"size":2,"digest":%q}`, typ, proxy.AnotherDigest)
			if key != "config" && key != "subject" {
				named = "[" + named + "]"
			}
			keys := fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,%q:%s`, typ, key, named)
			out = append(out, keys+"}")
			if typ == typeManifest && key != "config" {
				out = append(out, keys+fmt.Sprintf(`,"config":{"mediaType":"application/vnd.oci.image.config.v1+json","size":2,"digest":%q}}`, proxy.OwnDigest))
			}
		}
	}
	return out
}

// What the registry keeps in the repository is given out by a manifest's word without
// asking, where the registry has served it there before; where the cluster has it from
// elsewhere, one HEAD tells, once.
func TestManifestOpensWhatTheRegistryServes(t *testing.T) {
	w, im := privateWorld(t)
	// Bob's image, pushed to eve's repository by somebody who may.
	w.origin.put("eve/own", "copy", im.manifest, typeManifest)
	w.origin.keep("eve/own", im.layer)
	w.origin.keep("eve/own", im.config)
	if g := w.get("/v2/eve/own/manifests/copy", eve); g.status != 200 {
		t.Fatal(g.status)
	}
	heads := w.origin.count("HEAD")
	for range 3 {
		if g := w.get("/v2/eve/own/blobs/"+im.layerDigest(), eve); g.status != 200 {
			t.Fatal(g.status)
		}
	}
	if n := w.origin.count("HEAD") - heads; n != 1 {
		t.Errorf("%d HEADs for a layer that the cluster has from another repository, want 1", n)
	}
	gets := w.origin.count("GET")
	if g := w.get("/v2/app/img/blobs/"+im.layerDigest(), bob); g.status != 200 || w.origin.count("GET") != gets || w.origin.count("HEAD")-heads != 1 {
		t.Errorf("bob: %d, and the registry was asked", g.status)
	}
}
