package origin

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
)

// Info is what an origin says about content without sending it.
type Info struct {
	// Size in bytes; -1 where the origin does not say, which only a plain server
	// may.
	Size      int64
	MediaType string
	// Digest of the content; "" of a plain file.
	Digest blob.Digest
	// Validator is the ETag, or where there is none the Last-Modified date, that
	// this version of the content has: the value for If-Range in the header of a
	// later Read. "" where the origin gives none.
	Validator string
}

// Size returns what Stat does, without the validator.
func (c *Client) Size(ctx context.Context, ref Ref, header http.Header) (size int64, mediaType string, digest blob.Digest, err error) {
	info, err := c.Stat(ctx, ref, header)
	return info.Size, info.MediaType, info.Digest, err
}

// Stat asks for the size of ref by HEAD, and where the origin does not answer
// that fully by a GET of one byte or, for a manifest, of the whole. Without an
// Authorization in header the node's own credential counts, or else what anybody
// may have. Errors are those of Head, and *StatusError for every answer that is
// not the content.
func (c *Client) Stat(ctx context.Context, ref Ref, header http.Header) (Info, error) {
	header = contentHeader(header)
	ans, err := c.ask(ctx, http.MethodHead, ref, header, askNode)
	if err != nil {
		return Info{}, err
	}
	switch code := ans.StatusCode; {
	case code == http.StatusOK:
		discard(ans.Body)
		info := infoOf(ref, ans.Response, ans.ContentLength)
		if info.Size >= 0 && (info.Digest != "" || ref.Kind != KindManifest) {
			return info, nil
		}
	case code == http.StatusMethodNotAllowed, code == http.StatusNotImplemented,
		(code == http.StatusForbidden || code == http.StatusBadRequest) && (ans.away || ref.Kind == KindURL):
		// Presigned URLs are good for one method.
		discard(ans.Body)
	default:
		return Info{}, readRefusal(ans.Response).err(ref, time.Now())
	}
	if ref.Kind == KindManifest {
		return c.statManifest(ctx, ref, header)
	}
	return c.statByte(ctx, ref, header)
}

// statManifest reads a manifest to know its size and digest.
func (c *Client) statManifest(ctx context.Context, ref Ref, header http.Header) (Info, error) {
	ans, err := c.ask(ctx, http.MethodGet, ref, header, askNode)
	if err != nil {
		return Info{}, err
	}
	if ans.StatusCode != http.StatusOK {
		return Info{}, readRefusal(ans.Response).err(ref, time.Now())
	}
	body, err := io.ReadAll(io.LimitReader(ans.Body, probeManifest+1))
	_ = ans.Body.Close()
	if err != nil {
		return Info{}, about(ref, err)
	}
	if len(body) > probeManifest {
		return Info{}, fmt.Errorf("origin: %s: %w: manifest is larger than %d bytes", ref, ErrProtocol, probeManifest)
	}
	info := infoOf(ref, ans.Response, int64(len(body)))
	if d, ok := ref.Digest(); !ok {
		info.Digest = blob.FromBytes(body)
	} else if !d.Matches(body) {
		return Info{}, fmt.Errorf("origin: %s: %w: manifest does not have this digest", ref, ErrProtocol)
	}
	return info, nil
}

// statByte asks for the first byte of ref, to be told the size beside it.
func (c *Client) statByte(ctx context.Context, ref Ref, header http.Header) (Info, error) {
	header.Set("Range", "bytes=0-0")
	ans, err := c.ask(ctx, http.MethodGet, ref, header, askNode)
	if err != nil {
		return Info{}, err
	}
	size := ans.ContentLength
	switch ans.StatusCode {
	case http.StatusOK:
	case http.StatusPartialContent, http.StatusRequestedRangeNotSatisfiable:
		// An empty file has no first byte: 416 with bytes */0.
		r, err := parseContentRange(ans.Header.Get("Content-Range"))
		if err != nil || r.First > 0 || r.First < 0 && r.Size != 0 {
			return Info{}, readRefusal(ans.Response).err(ref, time.Now())
		}
		size = r.Size
	default:
		return Info{}, readRefusal(ans.Response).err(ref, time.Now())
	}
	_ = ans.Body.Close()
	return infoOf(ref, ans.Response, size), nil
}

func infoOf(ref Ref, resp *http.Response, size int64) Info {
	info := Info{Size: size, MediaType: resp.Header.Get("Content-Type"), Validator: validatorOf(resp.Header)}
	if ref.Kind == KindURL {
		return info
	}
	if d, ok := ref.Digest(); ok {
		info.Digest = d
	} else if d, err := blob.ParseDigest(resp.Header.Get("Docker-Content-Digest")); err == nil {
		info.Digest = d
	}
	return info
}

// contentHeader is a copy of a client's header without what asks for a part of
// the content, for none, or for other bytes than the digest is of.
func contentHeader(h http.Header) http.Header {
	out := h.Clone()
	if out == nil {
		out = http.Header{}
	}
	for _, k := range []string{"Range", "If-Range", "If-None-Match", "If-Modified-Since", "If-Match", "If-Unmodified-Since", "Accept-Encoding"} {
		out.Del(k)
	}
	return out
}

// validatorOf is the ETag or else the Last-Modified of a header.
func validatorOf(h http.Header) string {
	if tag := h.Get("Etag"); tag != "" {
		return tag
	}
	return h.Get("Last-Modified")
}
