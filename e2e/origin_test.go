package e2e

import (
	"net/http"
	"testing"

	"github.com/damselfly-p2p/damselfly/e2e/origin"
	"github.com/damselfly-p2p/damselfly/e2e/puller"
	"github.com/damselfly-p2p/damselfly/e2e/sample"
)

// TestOrigins pulls straight from each kind of origin: the judge of all other
// tests counts a pull as what it is, and lets in whom it should.
func TestOrigins(t *testing.T) {
	for _, row := range []struct {
		name   string
		kind   origin.Kind
		bucket bool
	}{
		{"public", origin.Public, false},
		{"basic", origin.Basic, false},
		{"token", origin.Token, false},
		{"public, blobs in a bucket", origin.Public, true},
		{"token, blobs in a bucket", origin.Token, true},
	} {
		t.Run(row.name, func(t *testing.T) {
			const repository = "app/img"
			o := startOrigin(t, row.kind, row.bucket)
			img := push(t, o, repository, sample.Small(), sample.OCI)
			if got := o.Counts(); got.Requests != 0 {
				t.Errorf("a push counts as %d requests", got.Requests)
			}
			_, err := straight(o).Pull(deadline(t), repository, "v1")
			must(t, err)
			checkOriginPaidOnce(t, o, img)
			if row.bucket == (o.Counts().Status[http.StatusTemporaryRedirect] == 0) {
				t.Errorf("redirects: %d, want some exactly when blobs are in a bucket", o.Counts().Status[http.StatusTemporaryRedirect])
			}
			if row.kind == origin.Public {
				return
			}
			for _, user := range []string{origin.Stranger, ""} {
				p := puller.Puller{Base: o.URL, Client: o.Client, Authorize: o.As(user)}
				if _, err := p.Pull(deadline(t), repository, "v1"); statusOf(err) != http.StatusUnauthorized {
					t.Errorf("user %q: %v, want 401", user, err)
				}
			}
		})
	}
}
