package origin

import (
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"regexp"
	"strings"

	"github.com/distribution/reference"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
)

// dockerHub is the name that references give to Docker Hub; it is not a host
// that serves the registry API.
const dockerHub = "docker.io"

// dockerHubHost is the host that does.
const dockerHubHost = "registry-1.docker.io"

// maxRegistry bounds a registry name: the longest DNS name, brackets and a port.
const maxRegistry = 253 + len(":65535")

var registryPattern = regexp.MustCompile("^" + reference.DomainRegexp.String() + "$")

// ParseRegistry checks s as a registry name, host[:port] by the "domain" of the
// grammar of github.com/distribution/reference, and returns it in the one
// spelling that keys use: lower case, without the port 443 that registries have
// by default, and "docker.io" for the other names of Docker Hub. It takes no scheme, no userinfo, no path and no zone. That the
// host may be dialled is not said; the guard of the dialer decides that.
func ParseRegistry(s string) (string, error) {
	fail := func(why string) (string, error) {
		return "", fmt.Errorf("registry %q: %s; want host or host:port, such as registry.example.com:5000", clip(s), why)
	}
	switch {
	case s == "":
		return fail("name is empty")
	case len(s) > maxRegistry:
		return fail("name is too long")
	case !registryPattern.MatchString(s):
		return fail("not a host name")
	}
	name, host, port := strings.ToLower(s), strings.ToLower(s), ""
	if hasPort(name) {
		i := strings.LastIndexByte(name, ':')
		host, port = name[:i], name[i+1:]
		if err := checkPort(port); err != nil {
			return fail(err.Error())
		}
	}
	if why := checkHost(host); why != "" {
		return fail(why)
	}
	// A reference needs the port of a host without a dot, to tell it from a repository.
	if n, _ := parseDigits(port); n == 443 && (strings.ContainsAny(host, ".:") || host == "localhost") {
		name, port = host, ""
	}
	if port == "" && (name == "index."+dockerHub || name == dockerHubHost) {
		return dockerHub, nil
	}
	return name, nil
}

// hasPort tells whether a registry's name has a port.
func hasPort(name string) bool { return strings.Contains(name, ":") && !strings.HasSuffix(name, "]") }

// checkHost says why host, which fits the grammar, is no host; "" when it is.
func checkHost(host string) string {
	if v6, ok := strings.CutPrefix(host, "["); ok {
		if a, err := netip.ParseAddr(strings.TrimSuffix(v6, "]")); err != nil || !a.Is6() {
			return "not an IPv6 address"
		}
		return ""
	}
	labels := strings.Split(host, ".")
	for i, l := range labels {
		if len(l) > 63 || l == "" && (i == 0 || i < len(labels)-1) {
			return "not a host name"
		}
	}
	if labels[len(labels)-1] == "" { // the root's dot
		labels = labels[:len(labels)-1]
	}
	// 127.1, 0x7f000001 and 2130706433 are addresses to some resolvers and names
	// to others: nobody means them, so they are not accepted as either.
	last := labels[len(labels)-1]
	if last[0] >= '0' && last[0] <= '9' {
		if _, err := netip.ParseAddr(host); err != nil {
			return "neither a host name nor an IPv4 address in dotted decimals"
		}
	}
	return ""
}

// ParseRepository checks s as a repository name: the "path" of the grammar of
// github.com/distribution/reference, which is also that of the distribution
// spec ("Pulling manifests"), at most 255 bytes. A name that passes is safe as
// part of a URL's path: it has no "..", no "%", no empty component.
func ParseRepository(s string) (string, error) {
	// With a domain in front nothing of s itself can be taken for one.
	named, err := reference.WithName("x.invalid/" + s)
	if err != nil || reference.Path(named) != s {
		return "", fmt.Errorf("repository %q: not a repository name; want lower-case words joined by '/', '.', '_' or '-', such as library/alpine", clip(s))
	}
	return s, nil
}

// ParseReference checks s as what may follow /manifests/ in a path: a digest
// that pkg/blob understands, or a tag.
func ParseReference(s string) (string, error) {
	if strings.Contains(s, ":") {
		d, err := blob.ParseDigest(s)
		return string(d), err
	}
	named, err := reference.WithName("x.invalid/x")
	if err == nil {
		_, err = reference.WithTag(named, s)
	}
	if err != nil {
		return "", fmt.Errorf("tag %q: want at most 128 letters, digits, '_', '.' or '-', the first no '.' or '-'", clip(s))
	}
	return s, nil
}

// ParseImage reads an image name as docker does and returns the manifest it
// names: "alpine" is docker.io/library/alpine:latest, and a digest wins over a
// tag where both are given.
func ParseImage(s string) (Ref, error) {
	named, err := reference.ParseDockerRef(s)
	if err != nil {
		return Ref{}, fmt.Errorf("image %q: %w; want [registry/]repository[:tag][@digest], such as alpine:3", clip(s), err)
	}
	r := Ref{Kind: KindManifest}
	if r.Registry, err = ParseRegistry(reference.Domain(named)); err != nil {
		return Ref{}, fmt.Errorf("image %q: %w", clip(s), err)
	}
	if !strings.ContainsAny(r.Registry, ".:") && r.Registry != "localhost" {
		// Upper case alone makes docker take the first word for a host, and no
		// other spelling of that host would.
		return Ref{}, fmt.Errorf("image %q: a registry needs a dot or a port in its name, and a repository is in lower case", clip(s))
	}
	if r.Repository, err = ParseRepository(reference.Path(named)); err != nil {
		return Ref{}, fmt.Errorf("image %q: %w", clip(s), err)
	}
	switch n := named.(type) {
	case reference.Digested:
		r.Reference = n.Digest().String()
	case reference.Tagged:
		r.Reference = n.Tag()
	}
	if r.Reference, err = ParseReference(r.Reference); err != nil {
		return Ref{}, fmt.Errorf("image %q: %w", clip(s), err)
	}
	return r, nil
}

// ParseURL checks s as the URL of a plain file and returns it without its
// fragment. A user and password in it are refused: they would end up in keys
// and logs; they belong into an Authorization header.
func ParseURL(s string) (string, error) {
	u, err := parseHTTP(s)
	if err != nil {
		return "", fmt.Errorf("URL %q: %w", clip(Redact(s)), err)
	}
	u.Fragment, u.RawFragment = "", ""
	return u.String(), nil
}

// parseHTTP parses an absolute http or https URL with a host and no userinfo.
// Its errors do not repeat s.
func parseHTTP(s string) (*url.URL, error) {
	u, err := url.Parse(s)
	switch {
	case err != nil:
		return nil, fmt.Errorf("not a URL")
	case u.Scheme != "http" && u.Scheme != "https":
		return nil, fmt.Errorf("scheme must be http or https")
	case u.User != nil:
		return nil, fmt.Errorf("must not hold a user name or password; send an Authorization header instead")
	}
	if !urlHost.MatchString(u.Host) {
		return nil, fmt.Errorf("host must be a name in ASCII or an address, and a port where needed")
	}
	host := strings.ToLower(strings.TrimSuffix(strings.TrimSuffix(u.Host, u.Port()), ":"))
	if why := checkHost(host); why != "" {
		return nil, fmt.Errorf("host: %s", why)
	}
	return u, checkPort(u.Port())
}

// urlHost is wider than the grammar of registries: DNS knows underscores.
var urlHost = regexp.MustCompile(`^(?:[A-Za-z0-9_.-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?$`)

// checkPort errs unless s is "" or a port that can be dialled.
func checkPort(s string) error {
	if n, ok := parseDigits(s); s != "" && (!ok || n == 0 || n > 65535) {
		return fmt.Errorf("port must be between 1 and 65535")
	}
	return nil
}

// originOf is u's scheme, host and port in one spelling: two URLs with the same
// origin are the same server to a credential (RFC 9110 section 4.3.1).
func originOf(u *url.URL) string {
	return strings.ToLower(u.Scheme) + "://" + dialAddr(u)
}

// dialAddr is the host:port that a transport dials for u.
func dialAddr(u *url.URL) string {
	port := u.Port()
	if port == "" {
		port = "443"
		switch strings.ToLower(u.Scheme) {
		case "http":
			port = "80"
		case "socks5":
			port = "1080"
		}
	}
	return net.JoinHostPort(strings.ToLower(u.Hostname()), port)
}

// Redact returns the URL s without query, userinfo and fragment, for logs and
// errors: a presigned URL is a credential. What does not parse is hidden whole.
func Redact(s string) string {
	u, err := url.Parse(s)
	if err != nil {
		return "(a URL that does not parse)"
	}
	return redactURL(u)
}

func redactURL(u *url.URL) string {
	bare := url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path, RawPath: u.RawPath, Opaque: u.Opaque}
	s := bare.String()
	if u.RawQuery != "" {
		s += "?…"
	}
	return s
}

func clip(s string) string { return clipTo(160, s) }

func clipTo(n int, s string) string {
	if len(s) > n {
		return s[:n] + "…"
	}
	return s
}
