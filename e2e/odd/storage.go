package odd

import (
	"crypto/rand"
	"net/http"
	"strings"
	"time"
)

// link is a signed URL.
type link struct {
	call   call // what it is for; its request and its answer are those of others
	hops   int
	method string // the only one it is good for; "" is any
	once   bool
	until  time.Time
	used   bool
}

// redirect sends the client to a new link.
func (c *call) redirect() {
	to := c.rule.Redirect
	l := &link{call: *c, hops: to.Hops, method: to.Only, once: to.Once}
	if to.Expires > 0 {
		l.until = time.Now().Add(to.Expires)
	}
	c.point(l)
}

// point answers with a redirect to a link.
func (c *call) point(l *link) {
	to := c.rule.Redirect
	path := "/storage/" + rand.Text()
	c.registry.mu.Lock()
	c.registry.links[strings.TrimPrefix(path, "/storage/")] = l
	c.registry.mu.Unlock()
	location := "https://" + c.registry.other + path + "?signature=1&expires=2"
	switch {
	case to.Relative:
		location = path + "?signature=1"
	case to.Same:
		location = "https://" + c.registry.Host + path
	}
	status := to.Status
	if status == 0 {
		status = http.StatusTemporaryRedirect
	}
	c.w.Header().Set("Location", location)
	c.w.Header().Set("Content-Length", "0")
	c.w.WriteHeader(status)
}

// serveStorage answers requests for links.
func (r *Registry) serveStorage(w http.ResponseWriter, req *http.Request) {
	r.mu.Lock()
	l := r.links[strings.TrimPrefix(req.URL.Path, "/storage/")]
	var spent bool
	if l != nil {
		spent = l.once && l.used
		l.used = true
	}
	r.mu.Unlock()
	if l == nil {
		refuse(w, http.StatusNotFound, "")
		return
	}
	c := l.call
	c.w, c.r = w, req
	c.kind = map[bool]Kind{true: HeadBlob, false: GetBlob}[req.Method == http.MethodHead]
	to := c.rule.Redirect
	switch {
	case to.Refuse != 0:
		refuse(w, to.Refuse, to.RetryAfter)
	case spent, l.method != "" && l.method != req.Method, !l.until.IsZero() && time.Now().After(l.until):
		refuse(w, http.StatusForbidden, "")
	case l.hops > 0:
		next := *l
		next.hops--
		next.used = false
		c.point(&next)
	default:
		if !c.doc.manifest {
			c.rule.Digest = DigestNone // a bucket knows no digests
		}
		c.content()
	}
}
