package proxy

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"math"
	"net/http"
	"sort"
	"strings"
	"time"

	"github.com/damselfly-p2p/damselfly/pkg/origin"
)

// viaHeader tells a request that one of us sent from one of a client, by the
// random names of those it passed. It stops a node that was named as its own
// upstream, and circles of nodes.
const viaHeader = "Damselfly-Via"

// maxHops bounds the nodes that a request may pass.
const maxHops = 4

// looped tells whether a request came from this proxy, or through too many.
func (p *Proxy) looped(h http.Header) bool {
	hops := 0
	for _, list := range h[viaHeader] {
		for name := range strings.SplitSeq(list, ",") {
			if strings.TrimSpace(name) == p.name {
				return true
			}
			hops++
		}
	}
	return hops >= maxHops
}

// via is the header's value for a request that follows from one with headers h.
func (p *Proxy) via(h http.Header) string {
	return strings.Join(append(append([]string(nil), h[viaHeader]...), p.name), ", ")
}

// originHeader is what of a client's headers an origin sees when we ask on its behalf: all
// that it may decide by. What asks for a part of the content, for none or for another
// encoding is left out.
func (p *Proxy) originHeader(h http.Header) http.Header {
	out := p.ownHeader(h)
	for k := range out {
		if k != viaHeader && ownHeader(k) || origin.Traces(k) {
			delete(out, k)
		}
	}
	return out
}

// ownHeader is what of a client's headers the origin sees of the client's own request: all
// that is not about the connection to us.
func (p *Proxy) ownHeader(h http.Header) http.Header {
	out := http.Header{}
	copyEndToEnd(out, h)
	out.Del("Host")
	out.Set(viaHeader, p.via(h))
	return out
}

// whoSends is the credential of a client whose header, which originHeader made, this is.
func (p *Proxy) whoSends(header http.Header) credential {
	var keys []string
	for k := range header {
		if origin.Decides(k) {
			keys = append(keys, k)
		}
	}
	return p.credentialOf(header, keys...)
}

// credential stands for a client's right without holding it: an HMAC of its
// header under a key that this process alone knows, for the life of the process.
// The zero credential is that of a client that sent none.
type credential [sha256.Size]byte

// credentialOf derives the credential of a client that sends these headers. The
// headers are those that origins decide by.
func (p *Proxy) credentialOf(h http.Header, keys ...string) credential {
	mac := hmac.New(sha256.New, p.key[:])
	sort.Strings(keys)
	any := false
	for _, k := range keys {
		for _, v := range h[k] {
			any = true
			mac.Write([]byte(k + "\x00" + v + "\x00"))
		}
	}
	var c credential
	if any {
		mac.Sum(c[:0])
	}
	return c
}

// expiry is when the bearer token in an Authorization header ends, if it is a
// JWT that says so. It is not verified: it can only shorten what the origin
// granted.
func expiry(authorization string) (time.Time, bool) {
	scheme, token, _ := strings.Cut(authorization, " ")
	if !strings.EqualFold(scheme, "Bearer") {
		return time.Time{}, false
	}
	parts := strings.Split(strings.TrimSpace(token), ".")
	if len(parts) != 3 {
		return time.Time{}, false
	}
	payload, err := base64.RawURLEncoding.DecodeString(strings.TrimRight(parts[1], "="))
	if err != nil {
		return time.Time{}, false
	}
	var claims struct {
		Exp float64 `json:"exp"`
	}
	if json.Unmarshal(payload, &claims) != nil || claims.Exp <= 0 || claims.Exp > math.MaxInt32*100 {
		return time.Time{}, false
	}
	return time.Unix(int64(claims.Exp), 0), true
}
