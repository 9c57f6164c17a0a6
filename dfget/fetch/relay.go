package fetch

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"regexp"
	"strings"
	"syscall"
)

// relay stands between the library that answers challenges and the network. The
// library believes that it speaks to the registry: requests for content go to
// the daemon instead, and token requests to the realm.
//
// The library refuses realms at private addresses of other hosts, which many
// companies have; so it is shown every realm at the registry's own host, at port
// 0, which no request of ours has. The realm's dialer refuses what must be
// refused.
type relay struct {
	base     *url.URL
	daemon   http.RoundTripper
	realm    http.RoundTripper
	registry string
}

// relayedKey marks the context of a request with the path that goes to the
// daemon; token requests share the context.
type relayedKey struct{}

const realmPort = "0"

// RoundTrip implements http.RoundTripper.
func (r *relay) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.URL.Port() == realmPort {
		return r.askRealm(req)
	}
	if path, _ := req.Context().Value(relayedKey{}).(string); path != req.URL.Path || req.URL.Host != r.registry {
		return nil, fmt.Errorf("request for %s does not belong to the daemon", req.URL.Host)
	}
	out := req.Clone(req.Context())
	out.URL, out.Host = below(r.base, req.URL.Path, url.Values{"ns": {r.registry}}), ""
	resp, err := r.daemon.RoundTrip(out)
	if err != nil {
		return nil, err
	}
	// The library compares where the answer came from with where it asked.
	resp.Request = req
	if resp.StatusCode == http.StatusUnauthorized {
		r.chooseChallenge(resp, req.URL.Scheme)
	}
	return resp, nil
}

// below is the URL of path under base, whose own path has no slash at its end.
func below(base *url.URL, path string, query url.Values) *url.URL {
	u := *base
	u.Path += path
	u.RawQuery = query.Encode()
	return &u
}

// realmParam finds the realm of a challenge, quoted or not.
var realmParam = regexp.MustCompile(`(?i)\brealm=(?:"([^"]*)"|([^",\s]+))`)

// chooseChallenge leaves the one challenge that the library shall answer, with
// its realm hidden: Bearer before Basic.
func (r *relay) chooseChallenge(resp *http.Response, scheme string) {
	fields := resp.Header.Values("Www-Authenticate")
	var basic string
	for _, f := range fields {
		name, _, _ := strings.Cut(f, " ")
		switch strings.ToLower(name) {
		case "bearer":
			if hidden, err := r.hideRealm(f, scheme); err == nil {
				resp.Header["Www-Authenticate"] = []string{hidden}
				return
			}
		case "basic":
			basic = f
		}
	}
	resp.Header.Del("Www-Authenticate")
	if basic != "" {
		resp.Header.Set("Www-Authenticate", basic)
	}
}

func (r *relay) hideRealm(field, scheme string) (string, error) {
	m := realmParam.FindStringSubmatchIndex(field)
	if m == nil {
		return "", errors.New("challenge names no realm")
	}
	lo, hi := m[2], m[3]
	if lo < 0 {
		lo, hi = m[4], m[5]
	}
	if _, err := parseRealm(field[lo:hi], scheme); err != nil {
		return "", err
	}
	host := r.registry
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	host = strings.Trim(host, "[]")
	hidden := url.URL{Scheme: scheme, Host: net.JoinHostPort(host, realmPort), Path: "/" + base64.RawURLEncoding.EncodeToString([]byte(field[lo:hi]))}
	return field[:m[0]] + `realm="` + hidden.String() + `"` + field[m[1]:], nil
}

// parseRealm checks a token realm. A registry that has TLS may not have
// credentials sent to a realm that has not.
func parseRealm(s, scheme string) (*url.URL, error) {
	u, err := url.Parse(s)
	switch {
	case err != nil:
		return nil, errors.New("token realm is not a URL")
	case u.Host == "" || u.User != nil || (u.Scheme != "https" && u.Scheme != "http"):
		return nil, errors.New("token realm must be an http or https URL")
	case u.Scheme == "http" && scheme == "https":
		return nil, errors.New("token realm is plain http while the registry is https")
	}
	return u, nil
}

func (r *relay) askRealm(req *http.Request) (*http.Response, error) {
	raw, err := base64.RawURLEncoding.DecodeString(strings.TrimPrefix(req.URL.Path, "/"))
	if err != nil {
		return nil, errors.New("token request is not one of ours")
	}
	u, err := parseRealm(string(raw), req.URL.Scheme)
	if err != nil {
		return nil, err
	}
	q := u.Query()
	for k, vs := range req.URL.Query() {
		q[k] = append(q[k], vs...)
	}
	u.RawQuery = q.Encode()
	out := req.Clone(req.Context())
	out.URL, out.Host = u, ""
	resp, err := r.realm.RoundTrip(out)
	if err != nil {
		return nil, fmt.Errorf("token realm %s: %w", u.Host, err)
	}
	resp.Request = req
	return resp, nil
}

// RefuseMetadata is a net.Dialer's ControlContext that lets a registry's realm
// lead to no link-local address and no cloud's metadata service.
func RefuseMetadata(_ context.Context, _, address string, _ syscall.RawConn) error {
	ap, err := netip.ParseAddrPort(address)
	if err != nil {
		return fmt.Errorf("address %q cannot be read", address)
	}
	addr := ap.Addr().Unmap().WithZone("")
	if addr.IsLinkLocalUnicast() || addr.IsMulticast() || addr.IsUnspecified() || isMetadata(addr) {
		return fmt.Errorf("a token realm may not be at %s", addr)
	}
	return nil
}

// isMetadata knows the addresses outside the link-local ranges at which clouds
// serve secrets to whoever asks.
func isMetadata(addr netip.Addr) bool {
	switch addr.String() {
	case "100.100.100.200", // Alibaba
		"168.63.129.16",                     // Azure
		"192.0.0.192", "fd00:c1::a9fe:a9fe", // Oracle
		"fd00:ec2::254", "fd00:ec2::23", // AWS
		"fd20:ce::254": // GCP
		return true
	}
	return false
}
