package fetch

import (
	"context"
	"io"
	"net/http"
	"time"

	"github.com/damselfly-p2p/damselfly/pkg/origin"
)

// Origin is the Source that reads registries and web servers itself.
type Origin struct {
	client *origin.Client
	stall  time.Duration
}

// NewOrigin returns the Source over client. stall is how long a web server or a
// manifest may send nothing; 0 = DefaultStall.
func NewOrigin(client *origin.Client, stall time.Duration) *Origin {
	if stall <= 0 {
		stall = DefaultStall
	}
	return &Origin{client: client, stall: stall}
}

// Name is "origin".
func (o *Origin) Name() string { return "origin" }

// Open implements Source. Blobs are read by the client's own reader, which goes
// on after breaks and knows about presigned redirects.
func (o *Origin) Open(ctx context.Context, w Want, off int64, validator string) (*Reply, error) {
	if w.Ref.Kind == origin.KindBlob {
		return o.openBlob(ctx, w, off)
	}
	dog := newWatchdog(ctx, o.stall)
	resp, err := o.client.Solver().Get(dog.ctx, w.Ref, requestHeader(w, off, validator))
	if err != nil {
		err = dog.explain(err)
		dog.stop()
		return nil, err
	}
	resp.Body = &guarded{ReadCloser: resp.Body, dog: dog}
	return reply(resp, w)
}

func (o *Origin) openBlob(ctx context.Context, w Want, off int64) (*Reply, error) {
	r := &Reply{Size: w.Size, Offset: off}
	if w.Size < 0 {
		size, mediaType, _, err := o.client.Size(ctx, w.Ref, requestHeader(w, 0, ""))
		if err != nil {
			return nil, &finalError{err}
		}
		r.Size, r.MediaType = size, mediaType
	}
	if off >= r.Size {
		// Nothing is left, or more is held than there is: the digest decides.
		r.Offset = min(off, r.Size)
		r.Body = http.NoBody
		return r, nil
	}
	body, err := o.client.Read(ctx, w.Ref, requestHeader(w, 0, ""), r.Size, off, -1)
	if err != nil {
		return nil, &finalError{err}
	}
	r.Body = &tired{body}
	return r, nil
}

// tired marks the errors of a reader that has done all its tries.
type tired struct{ io.ReadCloser }

func (t *tired) Read(b []byte) (int, error) {
	n, err := t.ReadCloser.Read(b)
	if err != nil && err != io.EOF {
		err = &finalError{err}
	}
	return n, err
}
