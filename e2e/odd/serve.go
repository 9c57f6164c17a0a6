package odd

import (
	"fmt"
	"net/http"
	"strconv"
	"strings"
)

// call is one request about a document.
type call struct {
	w        http.ResponseWriter
	r        *http.Request
	registry *Registry
	repo     *repo
	doc      *document
	kind     Kind
	// rule is what holds for it, the zero rule where none does.
	rule Rule
}

// cutFirst cuts a path after its first component.
func cutFirst(path string) (first, rest string) {
	first, rest, _ = strings.Cut(path, "/")
	return first, rest
}

// serve is the registry's own host.
func (r *Registry) serve(w http.ResponseWriter, req *http.Request) {
	switch path := req.URL.Path; {
	case path == "/token":
		r.serveToken(w, req)
	case strings.HasPrefix(path, "/storage/"):
		r.serveStorage(w, req)
	case path == "/v2/" || path == "/v2":
		r.servePing(w, req)
	default:
		r.serveRepository(w, req)
	}
}

// serveOther is the host of storage and realm.
func (r *Registry) serveOther(w http.ResponseWriter, req *http.Request) {
	if req.URL.Path == "/token" {
		r.serveToken(w, req)
		return
	}
	// As S3 does: a signed URL and a credential are one too many.
	if req.Header.Get("Authorization") != "" {
		refuse(w, http.StatusBadRequest, "")
		return
	}
	r.serveStorage(w, req)
}

func (r *Registry) servePing(w http.ResponseWriter, req *http.Request) {
	if r.only != nil && !r.mayEnter(w, req, r.only, "") {
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write([]byte("{}"))
}

// parsePath takes the path of a manifest or blob apart.
func parsePath(path string) (repository, reference string, manifest, ok bool) {
	path, ok = strings.CutPrefix(path, "/v2/")
	if !ok {
		return "", "", false, false
	}
	if repository, reference, ok = strings.Cut(path, "/manifests/"); ok {
		return repository, reference, true, true
	}
	repository, reference, ok = strings.Cut(path, "/blobs/")
	return repository, reference, false, ok
}

func (r *Registry) serveRepository(w http.ResponseWriter, req *http.Request) {
	name, reference, manifest, ok := parsePath(req.URL.Path)
	if !ok {
		refuse(w, http.StatusNotFound, "")
		return
	}
	repo, err := r.repo(name)
	if err != nil {
		refuse(w, http.StatusNotFound, "")
		return
	}
	kind := kindOf(req.Method, manifest, reference)
	if kind == 0 {
		refuse(w, http.StatusMethodNotAllowed, "")
		return
	}
	repo.mu.Lock()
	repo.counts.Requests++
	repo.mu.Unlock()
	b := repo.behaviour
	if (!b.Auth.OnlyTags || reference == tag) && !r.mayEnter(w, req, b, name) {
		return
	}
	if d := b.Demand; d.Header != "" && req.Header.Get(d.Header) != d.Value {
		refuse(w, d.Status, "")
		return
	}
	doc := repo.find(manifest, reference)
	if doc == nil {
		refuse(w, http.StatusNotFound, "")
		return
	}
	c := &call{w: w, r: req, registry: r, repo: repo, doc: doc, kind: kind}
	c.rule = repo.match(c)
	c.answer()
}

func kindOf(method string, manifest bool, reference string) Kind {
	kinds := map[string][3]Kind{
		http.MethodHead: {HeadTag, HeadDigest, HeadBlob}, http.MethodGet: {GetTag, GetDigest, GetBlob},
	}[method]
	switch {
	case !manifest:
		return kinds[2]
	case strings.Contains(reference, ":"):
		return kinds[1]
	default:
		return kinds[0]
	}
}

// match is the rule for a call. It counts the calls of rules that end.
func (r *repo) match(c *call) Rule {
	_, inside := cutFirst(r.name)
	user, _, _ := c.r.BasicAuth()
	r.mu.Lock()
	defer r.mu.Unlock()
	for i, rule := range r.behaviour.Rules {
		if rule.On&c.kind == 0 || rule.Layer && !c.doc.last || rule.User != "" && rule.User != user ||
			rule.Repository != "" && !strings.HasPrefix(inside, rule.Repository) {
			continue
		}
		if rule.First > 0 {
			key := fmt.Sprint(i, " ", c.kind, " ", c.doc.digest)
			if r.seen[key]++; r.seen[key] > rule.First {
				continue
			}
		}
		return rule
	}
	return Rule{}
}

// answer does what the rule says until the headers, or sends the client elsewhere.
func (c *call) answer() {
	rule := c.rule
	if rule.Early {
		c.w.Header().Set("Link", "</v2/>; rel=preload")
		c.w.WriteHeader(http.StatusEarlyHints)
		c.w.Header().Del("Link")
	}
	if c.work() != nil {
		panic(http.ErrAbortHandler)
	}
	switch {
	case rule.Hang:
		<-c.r.Context().Done()
		panic(http.ErrAbortHandler)
	case rule.Drop:
		panic(http.ErrAbortHandler)
	case rule.Status != 0:
		refuse(c.w, rule.Status, rule.RetryAfter)
	case rule.Redirect != nil:
		c.redirect()
	default:
		c.content()
	}
}

// work waits as the rule says.
func (c *call) work() error {
	key := c.doc.digest
	if c.rule.Lazy {
		c.repo.mu.Lock()
		done := c.repo.ready[key]
		c.repo.mu.Unlock()
		if done {
			return nil
		}
	}
	err := wait(c.r.Context(), c.rule.Wait)
	if err == nil {
		c.repo.mu.Lock()
		c.repo.ready[key] = true
		c.repo.mu.Unlock()
	}
	return err
}

// refuse answers with an error of the distribution spec.
func refuse(w http.ResponseWriter, status int, retryAfter string) {
	if retryAfter != "" {
		w.Header().Set("Retry-After", retryAfter)
	}
	w.Header().Set("Content-Type", "application/json")
	name := strings.ToUpper(strings.ReplaceAll(http.StatusText(status), " ", ""))
	body := fmt.Sprintf(`{"errors":[{"code":%q,"message":"the odd registry says so"}]}`, name)
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(status)
	_, _ = w.Write([]byte(body))
}
