package proxy

import (
	"net/http"
	"net/url"
	"regexp"
	"strings"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
	"github.com/damselfly-p2p/damselfly/pkg/origin"
)

// operation is what a request of the registry face asks for.
type operation int

const (
	opPing        operation = iota + 1
	opManifest              // end-2, end-3 of the distribution spec's table
	opBlob                  // end-2
	opTags                  // end-8
	opReferrers             // end-12
	opForward               // whatever else of the registry API the origin alone can answer
	opPassThrough           // paths outside of the registry API
)

// form is how a request named its registry.
type form int

const (
	formDefault form = iota // not at all: the face's default is meant
	formFixed               // by the face: the host of a CONNECT, a mirror port
	formNS                  // by the query's ns
	formPrefix              // by the path's first component
	formBoth                // by the query's ns, and by the path's first component too
)

// target is a parsed request: which registry, and what of it.
type target struct {
	form       form
	registry   string // in the spelling of origin.ParseRegistry
	op         operation
	repository string
	reference  string      // a tag, or digest's text
	digest     blob.Digest // "" when reference is a tag
	path       string      // the path at the origin, decoded
	prefix     string      // what the path named the registry by, as spelled; "" where it did not
	url        string      // of the local end point instead of all that, without query
}

// ref is what the target names, as pkg/origin spells it. The target is of a
// kind that a Ref can name.
func (t target) ref() origin.Ref {
	if t.url != "" {
		return origin.Ref{Kind: origin.KindURL, URL: t.url}
	}
	r := origin.Ref{Registry: t.registry, Repository: t.repository, Reference: t.reference}
	switch t.op {
	case opManifest:
		r.Kind = origin.KindManifest
	case opBlob:
		r.Kind = origin.KindBlob
	case opTags:
		r.Kind = origin.KindTags
	case opReferrers:
		r.Kind = origin.KindReferrers
	}
	return r
}

// face is one way in: the main face has no registry of its own, others stand for
// one registry.
type face struct {
	registry string // "" for the main face
	fallback string // registry of requests that name none
	// server is set where the client believes that it speaks to the registry
	// itself: scheme and host:port of that.
	server *url.URL
}

// parse reads the target of a request. It accepts only what the distribution
// spec's grammar allows; everything else under a known registry is forwarded.
func (f face) parse(method string, u *url.URL) (target, *apiError) {
	t := target{path: u.Path}
	if strings.Contains(strings.ToLower(u.EscapedPath()), "%2f") {
		// A slash that is not one here may be one at the origin.
		return t, errName("an encoded slash in the path is not allowed")
	}
	if err := f.chooseRegistry(&t, u); err != nil {
		return t, err
	}
	rest, ok := strings.CutPrefix(t.path, "/v2/")
	switch {
	case t.path == "/v2" || ok && rest == "":
		t.op = opPing
		return t, nil
	case !ok && f.server != nil:
		t.op = opPassThrough
		return t, nil
	case !ok:
		return t, &apiError{status: http.StatusNotFound, code: codeUnsupported, message: "no such path: the registry API is below /v2/"}
	}
	return t, parseOperation(&t, method, rest)
}

// chooseRegistry sets the target's registry and form, and takes a prefix off its
// path.
func (f face) chooseRegistry(t *target, u *url.URL) *apiError {
	t.form, t.registry = formFixed, f.registry
	if f.server != nil {
		return nil
	}
	query, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return errName("the query cannot be parsed")
	}
	if ns, ok := query["ns"]; ok {
		if len(ns) != 1 {
			return errName("ns is given more than once")
		}
		if err := setRegistry(t, formNS, ns[0]); err != nil {
			return err
		}
		if first, after, ok := cutRegistry(t.path); ok {
			t.nameBoth(first, after)
		}
		return nil
	}
	if f.registry != "" {
		return nil
	}
	t.form, t.registry = formDefault, f.fallback
	first, after, ok := cutRegistry(t.path)
	if !ok {
		return nil
	}
	t.path, t.prefix = after, first
	return setRegistry(t, formPrefix, first)
}

// cutRegistry takes the first component off a path where that may be a registry's name.
func cutRegistry(path string) (first, after string, ok bool) {
	rest, ok := strings.CutPrefix(path, "/v2/")
	if !ok {
		return "", "", false
	}
	first, after, ok = strings.Cut(rest, "/")
	return first, "/v2/" + after, ok && (strings.ContainsAny(first, ".:") || first == "localhost")
}

// nameBoth reads a path that names a registry although ns does: a mirror whose URL has a
// path (containerd's override_path, k3s's rewrites, buildkit's mirrors). Another name than
// ns may be part of a repository, but not of one of Docker Hub's.
func (t *target) nameBoth(first, after string) {
	name, err := origin.ParseRegistry(first)
	if err != nil || name != t.registry && t.registry != dockerHub {
		return
	}
	t.form, t.registry, t.path, t.prefix = formBoth, name, after, first
}

func setRegistry(t *target, form form, name string) *apiError {
	registry, err := origin.ParseRegistry(name)
	if err != nil {
		return errName(err.Error())
	}
	t.form, t.registry = form, registry
	return nil
}

// foreignDigest is a digest by the OCI image spec's grammar; blob.ParseDigest
// understands two of its algorithms.
var foreignDigest = regexp.MustCompile(`^[a-z0-9]+(?:[+._-][a-z0-9]+)*:[a-zA-Z0-9=_-]{1,256}$`)

// parseOperation reads what stands after "/v2/".
func parseOperation(t *target, method, rest string) *apiError {
	t.op = opForward
	parts := strings.Split(rest, "/")
	n := len(parts)
	read := method == http.MethodGet || method == http.MethodHead
	if n < 3 || !read {
		return nil
	}
	name, noun, last := strings.Join(parts[:n-2], "/"), parts[n-2], parts[n-1]
	var op operation
	switch {
	case noun == "manifests":
		op = opManifest
	case noun == "blobs":
		op = opBlob
	case noun == "tags" && last == "list":
		op = opTags
	case noun == "referrers":
		op = opReferrers
	default:
		return nil
	}
	repository, err := origin.ParseRepository(name)
	if err != nil {
		return errName(err.Error())
	}
	if t.registry == dockerHub && !strings.Contains(repository, "/") {
		// Docker's short names: nothing else at Docker Hub has one component.
		repository = "library/" + repository
		t.path = "/v2/" + repository + strings.TrimPrefix(t.path, "/v2/"+name)
	}
	t.repository = repository
	if op == opTags {
		t.op = op
		return nil
	}
	return parseReference(t, op, last)
}

func parseReference(t *target, op operation, s string) *apiError {
	if strings.Contains(s, ":") || op != opManifest {
		d, err := blob.ParseDigest(s)
		if err != nil {
			if foreignDigest.MatchString(s) && !strings.HasPrefix(s, "sha256:") && !strings.HasPrefix(s, "sha512:") {
				return nil // of an algorithm that only the origin may know
			}
			return &apiError{status: http.StatusBadRequest, code: codeDigestInvalid, message: err.Error()}
		}
		t.op, t.reference, t.digest = op, d.String(), d
		return nil
	}
	tag, err := origin.ParseReference(s)
	if err != nil {
		// The spec has no code for a bad tag; registries say that there is no such manifest.
		return &apiError{status: http.StatusNotFound, code: codeManifestUnknown, message: err.Error()}
	}
	t.op, t.reference = op, tag
	return nil
}

// query is the query that the origin is to see of the request's.
func (t target) query(u *url.URL) string {
	if t.form == formFixed { // where ns chooses nothing, it is the origin's
		return u.RawQuery
	}
	return withoutNS(u.RawQuery)
}

// withoutNS is a raw query without the ns that was meant for us.
func withoutNS(raw string) string {
	kept := strings.FieldsFunc(raw, func(r rune) bool { return r == '&' })
	n := 0
	for _, pair := range kept {
		key, _, _ := strings.Cut(pair, "=")
		if k, err := url.QueryUnescape(key); err != nil || k != "ns" {
			kept[n] = pair
			n++
		}
	}
	return strings.Join(kept[:n], "&")
}

// localize turns a path that the origin sent (Link, Location) into one that
// leads here again, for the clients whose registry is named by prefix or ns.
func (t target) localize(s string) string {
	u, err := url.Parse(s)
	if err != nil || u.IsAbs() || u.Host != "" || !strings.HasPrefix(u.Path, "/v2/") {
		return s
	}
	switch t.form {
	case formPrefix, formBoth: // a client that says ns says it again by itself
		return "/v2/" + t.prefix + strings.TrimPrefix(s, "/v2")
	case formNS:
		pair := "ns=" + url.QueryEscape(t.registry)
		if u.RawQuery != "" {
			pair = u.RawQuery + "&" + pair
		}
		u.RawQuery = pair
		return u.String()
	}
	return s
}

// localizeHeader does so for the headers of an answer.
func (t target) localizeHeader(h http.Header) {
	if t.form != formPrefix && t.form != formNS && t.form != formBoth {
		return
	}
	if l := h.Get("Location"); l != "" {
		h.Set("Location", t.localize(l))
	}
	for i, link := range h["Link"] {
		before, rest, ok := strings.Cut(link, "<")
		inner, after, ok2 := strings.Cut(rest, ">")
		if ok && ok2 {
			h["Link"][i] = before + "<" + t.localize(inner) + ">" + after
		}
	}
}
