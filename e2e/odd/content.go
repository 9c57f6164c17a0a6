package odd

import (
	"bytes"
	"compress/gzip"
	"net/http"
	"strconv"
	"strings"

	"github.com/damselfly-p2p/damselfly/e2e/sample"
)

// content answers with the document, as the rule wants it.
func (c *call) content() {
	h := c.w.Header()
	described := c.doc
	if c.rule.Digest == DigestChild && c.doc == c.repo.target {
		described = c.repo.child
	}
	c.name(described)
	body := described.data
	if c.kind&Gets != 0 {
		body = c.doc.data
	}
	if c.doc.manifest && strings.Contains(c.r.Header.Get("If-None-Match"), c.doc.digest) {
		c.w.WriteHeader(http.StatusNotModified)
		return
	}
	if c.kind&Heads != 0 {
		if n := c.length(body); n >= 0 {
			h.Set("Content-Length", strconv.FormatInt(n, 10))
		}
		c.w.WriteHeader(http.StatusOK)
		return
	}
	status, body := c.ranged(body)
	if c.rule.Gzip && status == http.StatusOK && !onlyIdentity(c.r) {
		h.Set("Content-Encoding", "gzip")
		body = gzipped(body)
	}
	c.send(status, body)
}

func onlyIdentity(r *http.Request) bool { return r.Header.Get("Accept-Encoding") == "identity" }

func gzipped(data []byte) []byte {
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	_, _ = w.Write(data) // a buffer takes everything
	_ = w.Close()
	return out.Bytes()
}

// name sets the headers that say what the document is.
func (c *call) name(d *document) {
	h := c.w.Header()
	digest := d.digest
	switch c.rule.Digest {
	case DigestOther:
		digest = c.repo.config.digest
	case DigestFormer:
		digest = c.repo.former.digest
	case DigestUnknown:
		digest = sample.Digest([]byte(d.digest))
	case DigestNone:
		digest = ""
	}
	if digest != "" {
		h.Set("Docker-Content-Digest", digest)
	}
	switch {
	case c.rule.ETag != "":
		h.Set("ETag", c.rule.ETag)
	case digest != "":
		h.Set("ETag", `"`+digest+`"`)
	}
	contentType := d.mediaType
	if !d.manifest {
		contentType = "application/octet-stream"
	}
	switch c.rule.Type {
	case "":
		h.Set("Content-Type", contentType)
	case "-":
		h["Content-Type"] = nil
	default:
		h.Set("Content-Type", c.rule.Type)
	}
	if !d.manifest && c.rule.Range != RangeIgnored {
		h.Set("Accept-Ranges", "bytes")
	}
}

// length is what a HEAD tells; a negative one is not told.
func (c *call) length(body []byte) int64 {
	n := int64(len(body))
	switch c.rule.Length {
	case LengthZero:
		return 0
	case LengthHalf:
		return n / 2
	case LengthPlus:
		return n + 1
	case LengthMinus:
		return n - 1
	case LengthDouble:
		return 2 * n
	case LengthEncoded:
		return int64(len(gzipped(body)))
	case LengthNone:
		return -1
	default:
		return n
	}
}

// send sends a body.
func (c *call) send(status int, body []byte) {
	h := c.w.Header()
	if c.rule.Close {
		h.Set("Connection", "close")
	}
	switch {
	case c.rule.Trailer:
		h.Set("Trailer", "X-Checksum")
	case c.rule.Framing == FramingClose && c.r.ProtoMajor == 1:
		h.Set("Transfer-Encoding", "identity")
		h.Set("Connection", "close")
	case c.rule.Framing == FramingLength:
		h.Set("Content-Length", strconv.Itoa(len(body)))
	}
	c.w.WriteHeader(status)
	control := http.NewResponseController(c.w)
	if c.rule.FirstByte > 0 || c.rule.CutAtOnce || c.rule.Framing != FramingLength {
		if control.Flush() != nil {
			panic(http.ErrAbortHandler)
		}
	}
	if wait(c.r.Context(), c.rule.FirstByte) != nil || c.rule.CutAtOnce {
		panic(http.ErrAbortHandler)
	}
	part := body
	if c.rule.Cut {
		part = body[:len(body)/2]
	}
	n, err := c.w.Write(part)
	if !c.doc.manifest {
		c.repo.mu.Lock()
		c.repo.counts.BlobBytes += int64(n)
		c.repo.mu.Unlock()
	}
	if c.rule.Cut || err != nil {
		_ = control.Flush()
		panic(http.ErrAbortHandler)
	}
	if c.rule.Trailer {
		h.Set("X-Checksum", "none")
	}
}
