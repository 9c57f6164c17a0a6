package identity

import (
	"strings"
	"testing"
)

const testID = "12D3KooWRYyVxwHFBQLMLbY2CuPBmcSQUzC1bZEuEHaVM9Xgz4fM"

func TestSPIFFERoundTrip(t *testing.T) {
	key := testKey(t)
	for _, role := range []Role{RoleNode, RoleSeed, RoleScheduler} {
		want := Peer{ID: key.ID(), Role: role, Cluster: "0123456789abcdef"}
		if want.String() != want.uri().String() {
			t.Errorf("printed as %s, in certificates as %s", want, want.uri())
		}
		got, err := parseSPIFFE(want.String())
		if err != nil || got != want {
			t.Errorf("%s came back as %v, %v", want, got, err)
		}
	}
}

func TestSPIFFERefused(t *testing.T) {
	id := testKey(t).ID()
	good := "spiffe://0123456789abcdef/node/" + id
	for name, s := range map[string]string{
		"empty":                "",
		"another scheme":       "https" + strings.TrimPrefix(good, "spiffe"),
		"upper-case scheme":    "SPIFFE" + strings.TrimPrefix(good, "spiffe"),
		"unknown role":         strings.Replace(good, "/node/", "/admin/", 1),
		"the wildcard role":    strings.Replace(good, "/node/", "/*/", 1),
		"upper-case role":      strings.Replace(good, "/node/", "/Node/", 1),
		"escaped role":         strings.Replace(good, "/node/", "/n%6fde/", 1),
		"no cluster":           strings.Replace(good, "0123456789abcdef", "", 1),
		"short cluster":        strings.Replace(good, "0123456789abcdef", "0123", 1),
		"upper-case cluster":   strings.Replace(good, "abcdef", "ABCDEF", 1),
		"port":                 strings.Replace(good, "abcdef/", "abcdef:1/", 1),
		"user":                 strings.Replace(good, "//", "//a@", 1),
		"query":                good + "?a",
		"fragment":             good + "#a",
		"trailing slash":       good + "/",
		"longer path":          good + "/x",
		"no ID":                "spiffe://0123456789abcdef/node/",
		"cut ID":               good[:len(good)-1],
		"ID of another kind":   "spiffe://0123456789abcdef/node/QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N",
		"ID in another base":   "spiffe://0123456789abcdef/node/k51qzi5uqu5dlvj2baxnqndepeb86cbk3ng7n3i46uzyxzyqj2xjonzllnv0v8",
		"very long":            good + strings.Repeat("a", 1<<16),
		"null byte at the end": good + "\x00",
	} {
		if p, err := parseSPIFFE(s); err == nil {
			t.Errorf("%s: took %q as %v", name, clip(s), p)
		}
	}
}

func FuzzSPIFFE(f *testing.F) {
	f.Add("spiffe://0123456789abcdef/node/" + testID)
	f.Add("spiffe://0123456789abcdef/scheduler/12D3KooW")
	f.Add("spiffe://")
	f.Add("spiffe://a/b/c/d")
	f.Fuzz(func(t *testing.T, s string) {
		p, err := parseSPIFFE(s)
		if err != nil {
			return
		}
		if p.String() != s {
			t.Fatalf("%q was taken for %s: there are two spellings of one identity", s, p)
		}
		if _, err := ParseRole(string(p.Role)); err != nil {
			t.Fatal(err)
		}
	})
}
