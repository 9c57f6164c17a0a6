package proxy_test

import "testing"

// What anybody could read is served while its registry is down, by digest and by tag as it
// was last seen; what is private, to those who hold a permission.
func TestRegistryIsDown(t *testing.T) {
	w := newWorld(t, nil)
	im := w.origin.push("app/img", "v1", noise(50_000))
	secret := w.origin.push("app/secret", "v1", noise(60_000))
	w.origin.readers["app/secret"] = []string{"Bearer bob"}
	pull := func(repo string, im image, headers ...string) (statuses []int, told int) {
		t.Helper()
		for path, want := range map[string][]byte{
			"manifests/v1": im.index, "manifests/" + im.manifestDigest(): im.manifest,
			"blobs/" + im.configDigest(): im.config, "blobs/" + im.layerDigest(): im.layer,
		} {
			g := w.get("/v2/"+repo+"/"+path, headers...)
			statuses = append(statuses, g.status)
			if g.status == 200 && g.body != string(want) {
				t.Errorf("%s: wrong content", path)
			}
			if g.header.Get("Warning") != "" {
				told++
			}
		}
		return statuses, told
	}
	all := func(statuses []int, want int) bool {
		for _, s := range statuses {
			if s != want {
				return false
			}
		}
		return true
	}
	if got, told := pull("app/img", im); !all(got, 200) || told != 0 {
		t.Fatal(got, told)
	}
	if got, _ := pull("app/secret", secret, bob); !all(got, 200) {
		t.Fatal(got)
	}
	w.origin.gone = true
	w.proxy.ForgetTags() // the time in which a tag is believed is over
	if got, told := pull("app/img", im); !all(got, 200) || told != 1 {
		t.Errorf("public: %v, %d of them marked", got, told)
	}
	if g := w.head("/v2/app/img/manifests/v1"); g.status != 200 || g.header.Get("Docker-Content-Digest") != im.indexDigest() {
		t.Errorf("HEAD of the tag: %d %v", g.status, g.header)
	}
	if got, _ := pull("app/img", im, eve); !all(got, 200) {
		t.Errorf("public, for somebody else: %v", got)
	}
	if got, _ := pull("app/secret", secret, bob); !all(got, 200) {
		t.Errorf("private, with a permission: %v", got)
	}
	for _, who := range []string{eve, "X-Nobody: 1"} {
		if got, _ := pull("app/secret", secret, who); !all(got, 502) {
			t.Errorf("private, for %s: %v", who, got)
		}
	}
	if w.metric("damselfly_stale_total") < 1 || w.logs.FilterMessageSnippet("does not answer").Len() != 1 {
		t.Error("neither counted nor told once")
	}
}
