package odd

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"time"

	"encoding/json"
)

// session is one client's way through one repository by one face.
type session struct {
	face      Face
	registry  *Registry
	behaviour *Behaviour
	repo      *repo
	client    *http.Client

	password      string
	patience      time.Duration // for one request
	authorization string        // what the last challenge was answered with
	outcomes      []outcome
}

// outcome is what became of one request.
type outcome struct {
	what   string
	status int
	// right tells that the client has what it asked for, cut that the answer broke off
	// after its headers, late that none came in time.
	right, cut, late bool
	// typed tells that it came with its media type.
	typed  bool
	detail string
	header http.Header
	took   time.Duration
	body   []byte
}

func (o outcome) String() string {
	out := fmt.Sprintf("%s: %d", o.what, o.status)
	if o.detail != "" {
		out += " " + o.detail
	}
	return fmt.Sprintf("%s (%.2f s)", out, o.took.Seconds())
}

// newSession is a client that has not asked anything yet.
func newSession(face Face, r *Registry, b *Behaviour, repository string) (*session, error) {
	repo, err := r.repo(repository)
	if err != nil {
		return nil, err
	}
	s := &session{face: face, registry: r, behaviour: b, repo: repo, client: face.client(), password: Password, patience: b.Patience}
	if s.patience == 0 {
		s.patience = 6 * time.Second
	}
	return s, nil
}

func (s *session) close() { s.client.CloseIdleConnections() }

// ask makes a request, answers a challenge, and reads the body.
func (s *session) ask(ctx context.Context, method, path string, header http.Header) outcome {
	ctx, cancel := context.WithTimeout(ctx, s.patience)
	defer cancel()
	start := time.Now()
	out := s.once(ctx, method, path, header)
	if challenge := out.header.Get("WWW-Authenticate"); out.status == http.StatusUnauthorized && challenge != "" {
		if s.meet(ctx, challenge) == nil {
			out = s.once(ctx, method, path, header)
		}
	}
	out.took = time.Since(start)
	return out
}

func (s *session) once(ctx context.Context, method, path string, header http.Header) outcome {
	req, err := http.NewRequestWithContext(ctx, method, s.face.url(s.registry.Host, path), nil)
	if err != nil {
		return outcome{detail: err.Error()}
	}
	for k, v := range header {
		req.Header[k] = v
	}
	if d := s.behaviour.Demand; d.Header != "" {
		req.Header.Set(d.Header, d.Value)
	}
	if s.authorization != "" {
		req.Header.Set("Authorization", s.authorization)
	}
	resp, err := s.client.Do(req)
	if err != nil {
		return outcome{detail: short(err), late: errors.Is(err, context.DeadlineExceeded)}
	}
	defer resp.Body.Close()
	out := outcome{status: resp.StatusCode, header: resp.Header}
	out.body, err = io.ReadAll(resp.Body)
	if err != nil {
		out.cut, out.late = true, errors.Is(err, context.DeadlineExceeded)
		out.detail = fmt.Sprintf("cut at %d bytes: %s", len(out.body), short(err))
		return out
	}
	if resp.Header.Get("Content-Encoding") == "gzip" && method != http.MethodHead {
		if r, err := gzip.NewReader(bytes.NewReader(out.body)); err == nil {
			out.body, _ = io.ReadAll(r) // a wrong body is judged as what it is
		}
	}
	if out.status >= 400 {
		out.detail = strings.TrimSpace(string(out.body[:min(len(out.body), 200)]))
	}
	return out
}

// short is an error without the URL.
func short(err error) string {
	var u *url.Error
	if errors.As(err, &u) {
		err = u.Err
	}
	return err.Error()
}

// meet gets what a challenge asks for.
func (s *session) meet(ctx context.Context, challenge string) error {
	basic, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+s.registry.Host, nil)
	if err != nil {
		return err
	}
	if s.behaviour.Auth.Scheme != "" && !s.behaviour.Auth.Public {
		basic.SetBasicAuth(User, s.password)
	}
	if strings.HasPrefix(challenge, "Basic ") {
		s.authorization = basic.Header.Get("Authorization")
		return nil
	}
	fields := map[string]string{}
	for _, m := range regexp.MustCompile(`(\w+)="([^"]*)"`).FindAllStringSubmatch(challenge, -1) {
		fields[m[1]] = m[2]
	}
	at, err := url.Parse(fields["realm"])
	if err != nil {
		return err
	}
	query := at.Query()
	for _, k := range []string{"service", "scope"} {
		if fields[k] != "" {
			query.Set(k, fields[k])
		}
	}
	at.RawQuery = query.Encode()
	basic.URL, basic.Host = at, at.Host
	resp, err := s.client.Do(basic)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	var answer struct{ Token string }
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil || answer.Token == "" {
		return fmt.Errorf("realm: %s", resp.Status)
	}
	s.authorization = "Bearer " + answer.Token
	return nil
}

// note keeps an outcome.
func (s *session) note(o outcome, what string, right bool, detail string) outcome {
	o.what, o.right = what, right
	if !right && o.detail == "" {
		o.detail = detail
	}
	s.outcomes = append(s.outcomes, o)
	return o
}

func (s *session) path(manifest bool, reference string) string {
	return "/v2/" + s.repo.name + map[bool]string{true: "/manifests/", false: "/blobs/"}[manifest] + reference
}

// head asks what something is. It is right where nothing of the answer is wrong.
func (s *session) head(ctx context.Context, what string, manifest bool, reference, accept string) outcome {
	o := s.ask(ctx, http.MethodHead, s.path(manifest, reference), acceptHeader(accept))
	doc := s.repo.find(manifest, reference)
	right := o.status == http.StatusOK && o.detail == "" && doc != nil
	if right {
		length, digest := o.header.Get("Content-Length"), o.header.Get("Docker-Content-Digest")
		right = (length == "" || length == fmt.Sprint(len(doc.data))) && (digest == "" || digest == doc.digest) &&
			(!manifest || o.header.Get("Content-Type") == doc.mediaType)
	}
	return s.note(o, what, right, "headers are not the document's: "+fmt.Sprint(o.header))
}

// get reads something, or a range of it.
func (s *session) get(ctx context.Context, what string, manifest bool, reference string, header http.Header) outcome {
	o := s.ask(ctx, http.MethodGet, s.path(manifest, reference), header)
	doc := s.repo.find(manifest, reference)
	if doc == nil {
		return s.note(o, what, false, "there is no such document")
	}
	want := doc.data
	if asked := header.Get("Range"); asked != "" && o.status == http.StatusPartialContent {
		first, last, _ := parseRange(asked, int64(len(want)))
		want = want[first : last+1]
	}
	o.typed = o.header.Get("Content-Type") == doc.mediaType
	right := (o.status == http.StatusOK || o.status == http.StatusPartialContent) && !o.cut && bytes.Equal(o.body, want)
	return s.note(o, what, right, fmt.Sprintf("%d bytes that are not the document's %d", len(o.body), len(want)))
}

func acceptHeader(accept string) http.Header {
	if accept == "" {
		return http.Header{}
	}
	return http.Header{"Accept": {accept}}
}
