package odd

import (
	"bytes"
	"fmt"
	"mime/multipart"
	"net/http"
	"net/textproto"
	"strconv"
	"strings"
)

// parseRange is the first and last byte that are asked for, of size. A range that
// cannot be had is not ok; several are not understood.
func parseRange(header string, size int64) (first, last int64, ok bool) {
	spec, ok := strings.CutPrefix(header, "bytes=")
	from, till, dash := strings.Cut(spec, "-")
	if !ok || !dash {
		return 0, 0, false
	}
	last, err := strconv.ParseInt(till, 10, 64)
	switch {
	case from == "": // a suffix
		return max(size-last, 0), size - 1, err == nil && last > 0 && size > 0
	case till == "" || err == nil && last >= size:
		last = size - 1
	case err != nil:
		return 0, 0, false
	}
	first, err = strconv.ParseInt(from, 10, 64)
	return first, last, err == nil && first <= last && first < size
}

// ranged is the status and the part of the body that a request for a range gets.
func (c *call) ranged(body []byte) (int, []byte) {
	asked := c.r.Header.Get("Range")
	if asked == "" || c.doc.manifest || c.rule.Range == RangeIgnored {
		return http.StatusOK, body
	}
	switch c.rule.Range {
	case Range416:
		return http.StatusRequestedRangeNotSatisfiable, nil
	case Range403:
		return http.StatusForbidden, nil
	case Range500:
		return http.StatusInternalServerError, nil
	}
	size := int64(len(body))
	first, last, ok := parseRange(asked, size)
	h := c.w.Header()
	if !ok {
		h.Set("Content-Range", fmt.Sprintf("bytes */%d", size))
		return http.StatusRequestedRangeNotSatisfiable, nil
	}
	told := fmt.Sprintf("bytes %d-%d/%d", first, last, size)
	switch c.rule.Range {
	case RangeWrong:
		first, last = 0, last-first
		told = fmt.Sprintf("bytes %d-%d/%d", first, last, size)
	case RangeUntold:
		return http.StatusPartialContent, body[first : last+1]
	case RangeMultipart:
		return http.StatusPartialContent, c.multipart(told, body[first:last+1])
	}
	h.Set("Content-Range", told)
	return http.StatusPartialContent, body[first : last+1]
}

func (c *call) multipart(told string, part []byte) []byte {
	var out bytes.Buffer
	w := multipart.NewWriter(&out)
	header := textproto.MIMEHeader{"Content-Range": {told}, "Content-Type": {"application/octet-stream"}}
	if p, err := w.CreatePart(header); err == nil {
		_, _ = p.Write(part) // a buffer takes everything
	}
	_ = w.Close()
	c.w.Header().Set("Content-Type", "multipart/byteranges; boundary="+w.Boundary())
	return out.Bytes()
}
