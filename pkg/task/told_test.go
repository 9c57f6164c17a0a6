package task

import (
	"net/http"
	"strings"
	"testing"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
	"github.com/damselfly-p2p/damselfly/pkg/origin"
)

// TestQueriesAreNotTold: what signs a URL is in nothing that a scheduler hears, and a seed
// that reads for the client gets it by its credential, for that place alone.
func TestQueriesAreNotTold(t *testing.T) {
	d := blob.FromBytes([]byte("x"))
	for _, query := range []string{
		"?X-Amz-Signature=s3cret&X-Amz-Credential=s3cret", "?sig=s3cret&se=2030", "?Expires=1&Signature=s3cret&Key-Pair-Id=s3cret",
		"?token=s3cret", "?s3cret", "?a=b?s3cret", "?%73ig=s3cret", "?x;s3cret", "",
	} {
		ref := origin.Ref{Kind: origin.KindURL, URL: "https://bucket.example/a/b" + query}
		c := claim{ref: ref, header: http.Header{"Accept": {"*/*"}}}
		wire := wireOrigin(ref, private(c.header))
		if strings.Contains(wire.String(), "s3cret") || wire.GetPrivate() != (query != "") {
			t.Errorf("%q: told %v", query, wire)
		}
		there := refOf(wire, d)
		tk := &task{claim: c}
		header, ok := tk.headerFor(there)
		if !ok {
			t.Errorf("%q: no credential", query)
		}
		got, sent := whole(there, header)
		if got.URL != ref.URL || sent.Get(urlHeader) != "" || sent.Get("Accept") != "*/*" {
			t.Errorf("%q: read at %q with %v", query, got.URL, sent)
		}
	}
	there := told(origin.Ref{Kind: origin.KindURL, URL: "https://bucket.example/a?s3cret"})
	for _, other := range []string{
		"https://evil.example/a?s", "http://bucket.example/a?s", "https://bucket.example/b?s", "https://bucket.example:444/a?s",
		"https://bucket.example/a", "https://u:p@bucket.example/a?s", "file:///a?s", "",
	} {
		if got, sent := whole(there, http.Header{urlHeader: {other}}); got != there || sent.Get(urlHeader) != "" && other != "" {
			t.Errorf("a credential for %q led to %q with %v", other, got.URL, sent)
		}
	}
	registry := origin.Ref{Kind: origin.KindBlob, Registry: "a.example", Repository: "b"}
	if got, _ := whole(registry, http.Header{urlHeader: {"https://evil.example/"}}); got != registry {
		t.Errorf("a registry's credential led to %v", got)
	}
}
