package main

import (
	"context"
	"fmt"
	"runtime"
	"strings"

	"github.com/distribution/reference"
	specs "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/spf13/cobra"

	"github.com/damselfly-p2p/damselfly/dfget/image"
	"github.com/damselfly-p2p/damselfly/dfget/layout"
	"github.com/damselfly-p2p/damselfly/pkg/blob"
	"github.com/damselfly-p2p/damselfly/pkg/origin"
)

// Formats of what pull writes.
const (
	formatOCI           = "oci"
	formatOCIArchive    = "oci-archive"
	formatDockerArchive = "docker-archive"
)

// pullReport is the JSON object that "dfget pull --output json" prints.
type pullReport struct {
	Ref       string       `json:"ref"`
	Path      string       `json:"path"`
	Format    string       `json:"format"`
	Digest    string       `json:"digest"`
	Manifest  string       `json:"manifest,omitempty"`
	MediaType string       `json:"mediaType"`
	Platform  string       `json:"platform,omitempty"`
	Bytes     int64        `json:"bytes"`
	Fetched   int64        `json:"fetchedBytes"`
	Kept      int64        `json:"keptBytes"`
	Seconds   float64      `json:"seconds"`
	Source    string       `json:"source"`
	Blobs     []blobReport `json:"blobs"`
}

type blobReport struct {
	Digest    string `json:"digest"`
	MediaType string `json:"mediaType"`
	Bytes     int64  `json:"bytes"`
	Source    string `json:"source"`
}

func (r *pullReport) finish(seconds float64) { r.Seconds = seconds }

func (r *pullReport) line() string {
	return fmt.Sprintf("%s: %s\n%s@%s", r.Path, summary(r.Bytes, r.Fetched, r.Seconds, r.Source), bareName(r.Ref), r.Digest)
}

// bareName is a reference without tag and digest.
func bareName(ref string) string {
	ref, _, _ = strings.Cut(ref, "@")
	if i := strings.LastIndexByte(ref, ':'); i > strings.LastIndexByte(ref, '/') {
		ref = ref[:i]
	}
	return ref
}

const pullLong = `Pull fetches a whole image: its manifest, its config and its layers.

PATH becomes an OCI image layout, a folder, or when it ends in .tar an archive
that docker load, podman load and skopeo read. A layout that exists gets the
image added; what it holds already is checked and not fetched again. An archive
needs the room of the image twice while it is packed.

Of a multi-platform image the one for this machine is taken, or the one that
--platform names; --all-platforms keeps all of them and their index.

PATH appears, or a layout's index changes, only when everything is whole and
right; until then the same command goes on where it stopped.

With --output json one object is printed at the end:
  ref           what was pulled
  path, format  where and how it was written
  digest        of the manifest or index that ref names
  manifest      digest of the manifest chosen for the platform
  mediaType     of what was written
  platform      os/arch[/variant]
  bytes         size of all manifests, configs and layers
  fetchedBytes  bytes that came over the network
  keptBytes     bytes that were here already
  seconds       how long it took
  source        daemon, origin, daemon+origin, or disk
  blobs         list of {digest, mediaType, bytes, source}
or, when it fails, ref and error: {exitCode, kind, message, hint}.

` + exitCodeHelp

// pullOptions are the flags of pull.
type pullOptions struct {
	options
	format   string
	platform string
	all      bool
	parallel int

	want     specs.Platform
	explicit bool // the platform was named by the user
	ref      origin.Ref
}

func newPullCommand(p *process) *cobra.Command {
	var o pullOptions
	cmd := &cobra.Command{
		Use:   "pull IMAGE[:TAG|@DIGEST] -O PATH",
		Short: "Fetch a whole image",
		Long:  pullLong,
		Example: `  dfget pull alpine:3 -O alpine.tar && docker load -i alpine.tar
  dfget pull ghcr.io/org/app:v1 -O app && skopeo copy oci:app:v1 docker://localhost:5000/app:v1
  dfget pull --platform linux/arm64 alpine:3 -O alpine-arm
  dfget pull --all-platforms alpine:3 -O alpine --output json`,
		Args: oneArg("IMAGE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := o.parse(p, args[0]); err != nil {
				return err
			}
			return runSession(cmd.Context(), p, &o.options, o.ref.String(), func(ctx context.Context, s *session) (report, error) {
				return s.pull(ctx, &o)
			})
		},
	}
	o.bind(cmd)
	f := cmd.Flags()
	f.StringVar(&o.format, "format", "", "oci, oci-archive or docker-archive (default: oci, or docker-archive when PATH ends in .tar)")
	f.StringVar(&o.platform, "platform", "", "os/arch[/variant] of the image to take (default: this machine's)")
	f.BoolVar(&o.all, "all-platforms", false, "take the images of all platforms and their index")
	f.IntVar(&o.parallel, "parallel", 3, "layers fetched at the same time")
	completeWords(cmd, "format", formatOCI, formatOCIArchive, formatDockerArchive)
	completeWords(cmd, "platform", "linux/amd64", "linux/arm64", "linux/arm/v7", "windows/amd64")
	return cmd
}

// parse reads the argument and checks the flags.
func (o *pullOptions) parse(p *process, arg string) error {
	if strings.Contains(arg, "://") {
		return &usageError{err: fmt.Errorf("%q is a URL, not an image", origin.Redact(arg)), hint: "files are fetched by: dfget get URL -O PATH"}
	}
	var err error
	if o.ref, err = origin.ParseImage(arg); err != nil {
		return &usageError{err: err}
	}
	if err := o.check(p); err != nil {
		return err
	}
	header, err := o.header()
	if err != nil {
		return err
	}
	if err := checkRegistryHeader(header); err != nil {
		return err
	}
	if o.parallel < 1 || o.parallel > 64 {
		return usagef("--parallel %d: want 1 to 64", o.parallel)
	}
	o.explicit = o.platform != ""
	switch {
	case o.explicit && o.all:
		return usagef("--platform and --all-platforms exclude each other")
	case o.explicit:
		if o.want, err = image.ParsePlatform(o.platform); err != nil {
			return &usageError{err: err}
		}
	default:
		o.want = image.LocalPlatform(runtime.GOOS, runtime.GOARCH)
	}
	return o.chooseFormat()
}

// chooseFormat checks the format against the path. What "" stands for in an
// archive is decided when the image is known.
func (o *pullOptions) chooseFormat() error {
	if o.path == stdoutPath {
		return &usageError{err: fmt.Errorf("pull cannot write to standard output"), hint: "name a folder, or a file that ends in .tar"}
	}
	isTar := strings.HasSuffix(o.path, ".tar")
	switch o.format {
	case "":
		for _, suffix := range []string{".tar.gz", ".tgz", ".tar.zst"} {
			if strings.HasSuffix(o.path, suffix) {
				return &usageError{err: fmt.Errorf("%s: archives are not compressed, since layers are", o.path), hint: "name it " + strings.TrimSuffix(o.path, suffix) + ".tar"}
			}
		}
		if !isTar {
			o.format = formatOCI
		}
	case formatOCI:
		if isTar {
			return usagef("--format oci writes a folder, and PATH ends in .tar")
		}
	case formatOCIArchive:
	case formatDockerArchive:
		if o.all {
			return &usageError{err: fmt.Errorf("a docker-archive holds one platform"), hint: "take --format oci-archive with --all-platforms"}
		}
	default:
		return usagef("--format %q: want oci, oci-archive or docker-archive", o.format)
	}
	return nil
}

// archive decides how an archive of img is written.
func (o *pullOptions) archive(img *pulled) error {
	if o.format == "" {
		o.format = formatOCIArchive
		if !o.all && img.single != nil && image.IsContainerImage(img.single) {
			o.format = formatDockerArchive
		}
	}
	if o.format == formatDockerArchive && (img.single == nil || !image.IsContainerImage(img.single)) {
		return &usageError{err: fmt.Errorf("%s is not a container image", o.ref), hint: "take --format oci-archive"}
	}
	return nil
}

// entry is the image's descriptor for an index.json: its tag, and its full name
// for containerd and Docker.
func (o *pullOptions) entry(d specs.Descriptor) specs.Descriptor {
	e := specs.Descriptor{MediaType: d.MediaType, Digest: d.Digest, Size: d.Size, Platform: d.Platform}
	if _, digested := o.ref.Digest(); !digested {
		e.Annotations = map[string]string{
			specs.AnnotationRefName:    o.ref.Reference,
			layout.AnnotationImageName: o.ref.String(),
		}
	}
	return e
}

// dockerImage is the image as Docker's save format describes it.
func (o *pullOptions) dockerImage(m *specs.Manifest) *layout.DockerImage {
	d := &layout.DockerImage{Config: blob.Digest(m.Config.Digest)}
	for _, l := range m.Layers {
		d.Layers = append(d.Layers, blob.Digest(l.Digest))
	}
	if _, digested := o.ref.Digest(); digested {
		return d
	}
	// The reference has been parsed before.
	if named, err := reference.ParseNormalizedNamed(o.ref.String()); err == nil {
		d.Tags = []string{reference.FamiliarString(named)}
	}
	return d
}
