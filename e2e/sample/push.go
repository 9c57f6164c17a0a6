package sample

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
)

// Push uploads the image to the registry at base (http://host:port) as
// repository:tag, each manifest by its digest too. authorization is the value of
// that header, "" for none.
func (img *Image) Push(ctx context.Context, base, repository, tag, authorization string) error {
	p := pusher{base: base + "/v2/" + repository, authorization: authorization}
	for _, m := range []Manifest{img.Native, img.Foreign} {
		for _, b := range append([]Blob{m.Config}, m.Layers...) {
			if err := p.blob(ctx, b); err != nil {
				return fmt.Errorf("push %s:%s: %w", repository, tag, err)
			}
		}
		if err := p.manifest(ctx, m.Blob, m.Digest); err != nil {
			return fmt.Errorf("push %s:%s: %w", repository, tag, err)
		}
	}
	if err := p.manifest(ctx, img.Index, tag); err != nil {
		return fmt.Errorf("push %s:%s: %w", repository, tag, err)
	}
	return nil
}

type pusher struct {
	base          string
	authorization string
}

func (p pusher) blob(ctx context.Context, b Blob) error {
	resp, err := p.send(ctx, http.MethodPost, p.base+"/blobs/uploads/", "", nil, http.StatusAccepted)
	if err != nil {
		return err
	}
	location, err := resp.Location()
	if err != nil {
		return fmt.Errorf("upload of %s: %w", b.Digest, err)
	}
	query := location.Query()
	query.Set("digest", b.Digest)
	location.RawQuery = query.Encode()
	_, err = p.send(ctx, http.MethodPut, location.String(), "application/octet-stream", b.Data, http.StatusCreated)
	return err
}

func (p pusher) manifest(ctx context.Context, b Blob, reference string) error {
	_, err := p.send(ctx, http.MethodPut, p.base+"/manifests/"+url.PathEscape(reference), b.MediaType, b.Data, http.StatusCreated)
	return err
}

func (p pusher) send(ctx context.Context, method, url, contentType string, body []byte, want int) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, url, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	if p.authorization != "" {
		req.Header.Set("Authorization", p.authorization)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, 4<<10))
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != want {
		return nil, fmt.Errorf("%s %s: %s: %s", method, req.URL.Path, resp.Status, answer)
	}
	return resp, nil
}
