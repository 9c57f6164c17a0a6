package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/spf13/cobra"

	"github.com/damselfly-p2p/damselfly/dfget/fetch"
	"github.com/damselfly-p2p/damselfly/dfget/image"
	"github.com/damselfly-p2p/damselfly/dfget/partial"
	"github.com/damselfly-p2p/damselfly/dfget/progress"
	"github.com/damselfly-p2p/damselfly/pkg/blob"
	"github.com/damselfly-p2p/damselfly/pkg/origin"
)

// getReport is the JSON object that "dfget get --output json" prints.
type getReport struct {
	Ref       string  `json:"ref"`
	Path      string  `json:"path"`
	Digest    string  `json:"digest"`
	MediaType string  `json:"mediaType,omitempty"`
	Bytes     int64   `json:"bytes"`
	Fetched   int64   `json:"fetchedBytes"`
	Kept      int64   `json:"keptBytes"`
	Seconds   float64 `json:"seconds"`
	Source    string  `json:"source"`
}

func (r *getReport) finish(seconds float64) { r.Seconds = seconds }

func (r *getReport) line() string {
	return fmt.Sprintf("%s: %s\n%s", r.Path, summary(r.Bytes, r.Bytes-r.Kept, r.Seconds, r.Source), r.Digest)
}

const getLong = `Get fetches one file: a plain http or https URL, or a blob or manifest of a
registry, named registry/repository@sha256:... or, a manifest, by its tag.

What has a digest (a registry's content, or a URL with --digest) goes through the
daemon of this machine when it runs; a URL without digest is read directly.

PATH appears only when the file is whole and right; until then the bytes wait
beside it in a hidden file, and the same command goes on from there. A regular
file at PATH is replaced. - as PATH means standard output.

With --output json one object is printed at the end:
  ref           what was fetched
  path          where it was written
  digest        of the bytes
  mediaType     as the origin says, where it does
  bytes         size of the file
  fetchedBytes  bytes that came over the network
  keptBytes     bytes of an earlier run that were used
  seconds       how long it took
  source        daemon, origin, daemon+origin, or disk
or, when it fails, ref and error: {exitCode, kind, message, hint}.

` + exitCodeHelp

func newGetCommand(p *process) *cobra.Command {
	var o options
	var digest string
	cmd := &cobra.Command{
		Use:   "get URL|IMAGE[:TAG|@DIGEST] -O PATH",
		Short: "Fetch a file, a blob or a manifest",
		Long:  getLong,
		Example: `  dfget get https://example.com/model.bin -O model.bin
  dfget get https://example.com/model.bin --digest sha256:9f86d0... -O model.bin
  dfget get ghcr.io/org/app@sha256:9f86d0... -O layer.tar.gz
  dfget get alpine:3 -O - | jq .`,
		Args: oneArg("URL or IMAGE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			w, err := parseGet(args[0], digest, &o)
			if err == nil {
				err = o.check(p)
			}
			if err == nil && o.path == stdoutPath && o.output == outputJSON {
				err = usagef("-O - and --output json both want standard output")
			}
			if err != nil {
				return err
			}
			return runSession(cmd.Context(), p, &o, w.Ref.String(), func(ctx context.Context, s *session) (report, error) {
				return s.get(ctx, w)
			})
		},
	}
	o.bind(cmd)
	cmd.Flags().StringVar(&digest, "digest", "", "digest that the bytes must have, such as sha256:9f86d0...")
	return cmd
}

// parseGet reads the argument of get.
func parseGet(arg, digest string, o *options) (fetch.Want, error) {
	header, err := o.header()
	if err != nil {
		return fetch.Want{}, err
	}
	w := fetch.Want{Size: -1, Header: header}
	if digest != "" {
		if w.Digest, err = blob.ParseDigest(digest); err != nil {
			return w, &usageError{err: fmt.Errorf("--digest: %w", err)}
		}
	}
	if strings.Contains(arg, "://") {
		u, err := origin.ParseURL(arg)
		if err != nil {
			return w, &usageError{err: err}
		}
		w.Ref = origin.Ref{Kind: origin.KindURL, URL: u}
		return w, nil
	}
	if w.Ref, err = origin.ParseImage(arg); err != nil {
		return w, &usageError{err: err}
	}
	if d, ok := w.Ref.Digest(); ok {
		if w.Digest != "" && w.Digest != d {
			return w, usagef("--digest is %s, but the name says %s", w.Digest, d)
		}
		w.Digest = d
	}
	w.Header = acceptManifests(header)
	return w, checkRegistryHeader(header)
}

func acceptManifests(header http.Header) http.Header {
	h := header.Clone()
	if h.Get("Accept") == "" {
		h.Set("Accept", strings.Join(image.Accept(), ", "))
	}
	return h
}

// get fetches w to the path of the options.
func (s *session) get(ctx context.Context, w fetch.Want) (report, error) {
	sink, err := s.openSink(w)
	if err != nil {
		return nil, err
	}
	defer sink.Close()
	net, err := s.o.connect(ctx, s.p, w.Ref, s.warn)
	if err != nil {
		return nil, err
	}
	defer net.close()
	item := s.tracker.Item(s.o.path, -1)
	res, err := fetchEither(ctx, net.fetcher, w, sink, item)
	if errors.Is(err, blob.ErrMismatch) {
		return nil, errors.Join(err, sink.Discard())
	}
	if err != nil {
		return nil, err
	}
	item.End()
	if err := sink.Commit(0o666 &^ s.p.Umask); err != nil {
		return nil, err
	}
	return &getReport{
		Ref: w.Ref.String(), Path: s.o.path, Digest: string(res.Digest), MediaType: res.MediaType,
		Bytes: res.Size, Fetched: res.Fetched, Kept: res.Kept, Source: res.Sources.String(),
	}, nil
}

// fetchEither fetches what a digest in a repository names. It may name a blob or
// a manifest; registries keep them apart.
func fetchEither(ctx context.Context, f *fetch.Fetcher, w fetch.Want, sink fetch.Sink, item *progress.Item) (fetch.Result, error) {
	if _, named := w.Ref.Digest(); !named || w.Ref.Kind != origin.KindManifest {
		return f.Fetch(ctx, w, sink, item)
	}
	asBlob := w
	asBlob.Ref.Kind = origin.KindBlob
	asBlob.Header = w.Header.Clone()
	asBlob.Header.Del("Accept")
	res, err := f.Fetch(ctx, asBlob, sink, item)
	if !notFound(err) {
		return res, err
	}
	return f.Fetch(ctx, w, sink, item)
}

func notFound(err error) bool {
	var status *origin.StatusError
	return errors.As(err, &status) && status.Code == http.StatusNotFound
}

// openSink opens where the bytes go. What is known by its digest goes on from
// whatever place it came from before.
func (s *session) openSink(w fetch.Want) (target, error) {
	if s.o.path == stdoutPath {
		return &stdout{w: s.p.Out}, nil
	}
	dir, name, err := partial.Locate(s.o.path)
	if err != nil {
		return nil, err
	}
	source := "url " + w.Ref.URL
	switch {
	case w.Digest != "":
		source = "digest " + string(w.Digest)
	case w.Ref.Kind != origin.KindURL:
		source = "ref " + w.Ref.String()
	}
	f, err := partial.Open(dir, name, source)
	if err != nil {
		dir.Close()
		return nil, err
	}
	return &file{File: f, dir: dir}, nil
}
