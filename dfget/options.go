package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"go.uber.org/zap"
	"golang.org/x/net/http/httpguts"
	"oras.land/oras-go/v2/registry/remote/credentials"

	"github.com/damselfly-p2p/damselfly/dfget/fetch"
	"github.com/damselfly-p2p/damselfly/pkg/config"
	"github.com/damselfly-p2p/damselfly/pkg/origin"
)

const (
	// defaultMirror is where the daemon of this machine listens.
	defaultMirror = "http://127.0.0.1:65001"
	// probeTimeout bounds how much later a download begins when the daemon hangs.
	probeTimeout = 500 * time.Millisecond

	outputText = "text"
	outputJSON = "json"
)

// options are the flags that get and pull share.
type options struct {
	path     string
	mirror   string
	direct   bool
	only     bool
	headers  []string
	timeout  time.Duration
	insecure []string
	plain    bool
	ca       string
	progress string
	output   string
	quiet    bool
	debug    bool

	mirrorSet bool // somebody named the daemon's address
}

func (o *options) bind(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVarP(&o.path, "path", "O", "", "where to write")
	f.StringVar(&o.mirror, "mirror", "", "address of the daemon (environment DAMSELFLY_MIRROR; default "+defaultMirror+")")
	f.BoolVar(&o.direct, "direct", false, "do not use the daemon")
	f.BoolVar(&o.only, "mirror-only", false, "fail rather than read the origin directly")
	f.StringArrayVarP(&o.headers, "header", "H", nil, `header for the origin, "Name: value"; may be repeated; not sent to where the origin redirects`)
	config.DurationVar(f, &o.timeout, "timeout", 0, "give up after so long, such as 90s or 10m (0 = never)")
	f.StringSliceVar(&o.insecure, "insecure-registry", nil, "registry host[:port] that is served by plain HTTP; may be repeated")
	f.BoolVar(&o.plain, "plain-http", false, "the registry of this image is served by plain HTTP")
	f.StringVar(&o.ca, "ca", "", "file with PEM certificates that the origin's certificate may chain to, beside the system's")
	f.StringVar(&o.progress, "progress", "auto", "auto, bar, plain or none; auto is bar on a terminal")
	f.StringVar(&o.output, "output", outputText, "text, or json for one JSON object on standard output at the end")
	f.BoolVarP(&o.quiet, "quiet", "q", false, "print errors only")
	f.BoolVar(&o.debug, "debug", false, "log requests to the origin on standard error")
	completeWords(cmd, "progress", "auto", "bar", "plain", "none")
	completeWords(cmd, "output", outputText, outputJSON)
}

// completeWords lets the shell complete the values of a flag.
func completeWords(cmd *cobra.Command, flag string, words ...string) {
	// The only error is that the flag does not exist.
	_ = cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(words, cobra.ShellCompDirectiveNoFileComp))
}

// check finds what contradicts itself, and fills in what the environment says.
func (o *options) check(p *process) error {
	if o.path == "" {
		return &usageError{err: fmt.Errorf("no -O PATH"), hint: "say where to write: -O PATH"}
	}
	if o.direct && o.only {
		return usagef("--direct and --mirror-only exclude each other")
	}
	if o.direct && o.mirror != "" {
		return usagef("--direct and --mirror exclude each other")
	}
	if !slices.Contains([]string{"auto", "bar", "plain", "none"}, o.progress) {
		return usagef("--progress %q: want auto, bar, plain or none", o.progress)
	}
	if o.output != outputText && o.output != outputJSON {
		return usagef("--output %q: want text or json", o.output)
	}
	if o.timeout < 0 {
		return usagef("--timeout %s: must not be below zero", o.timeout)
	}
	o.mirrorSet = o.mirror != ""
	if env := p.Env("DAMSELFLY_MIRROR"); !o.mirrorSet && env != "" {
		o.mirror, o.mirrorSet = env, true
	}
	if o.mirror == "" {
		o.mirror = defaultMirror
	}
	return nil
}

// header parses --header.
func (o *options) header() (http.Header, error) {
	h := http.Header{}
	for _, s := range o.headers {
		name, value, ok := strings.Cut(s, ":")
		value = strings.TrimSpace(value)
		if !ok || !httpguts.ValidHeaderFieldName(name) || !httpguts.ValidHeaderFieldValue(value) {
			// The value may be a secret.
			return nil, usagef(`--header %q: want "Name: value"`, clipSecret(name))
		}
		switch http.CanonicalHeaderKey(name) {
		case "Host", "Content-Length", "Transfer-Encoding", "Connection", "Range", "If-Range", "Accept-Encoding":
			return nil, usagef("--header %s: dfget sets this header itself", name)
		}
		h.Add(name, value)
	}
	return h, nil
}

// checkRegistryHeader errs on headers that no registry gets.
func checkRegistryHeader(h http.Header) error {
	for k := range h {
		if !slices.Contains([]string{"Authorization", "Cookie", "Accept", "User-Agent"}, k) {
			return usagef("--header %s: of headers registries get only Authorization, Cookie, Accept and User-Agent", k)
		}
	}
	return nil
}

func clipSecret(s string) string {
	if len(s) > 24 {
		return s[:24] + "…"
	}
	return s
}

// dockerConfig is the path of the user's docker config.json, "" when there is none
// that can be read: like docker, we say so and go on without credentials.
func dockerConfig(p *process, warn func(string)) string {
	dir := p.Env("DOCKER_CONFIG")
	if dir == "" {
		home := p.Env("HOME")
		if home == "" {
			return ""
		}
		dir = filepath.Join(home, ".docker")
	}
	file := filepath.Join(dir, "config.json")
	if _, err := os.Stat(file); err != nil {
		return ""
	}
	if _, err := credentials.NewStore(file, credentials.StoreOptions{}); err != nil {
		warn(file + " is no docker config.json that can be read, so no credential is used; mend it, or name another directory by DOCKER_CONFIG")
		return ""
	}
	return file
}

// network is what a command fetches through.
type network struct {
	fetcher *fetch.Fetcher
	mirror  *fetch.Mirror // nil when the daemon is not used
	client  *origin.Client
}

func (n *network) close() {
	if n.mirror != nil {
		n.mirror.Close()
	}
	if n.client != nil {
		n.client.Close()
	}
}

// connect finds out which sources there are for ref.
func (o *options) connect(ctx context.Context, p *process, ref origin.Ref, warn func(string)) (*network, error) {
	n := &network{}
	config := dockerConfig(p, warn)
	var sources []fetch.Source
	if !o.direct {
		mirror, err := o.findMirror(ctx, ref, config, warn)
		if err != nil {
			return nil, err
		}
		if mirror != nil {
			n.mirror = mirror
			sources = append(sources, mirror)
		}
	}
	if !o.only {
		client, err := o.originClient(p, ref, config)
		if err != nil {
			n.close()
			return nil, err
		}
		n.client = client
		sources = append(sources, fetch.NewOrigin(client, 0))
	}
	n.fetcher = fetch.New(fetch.Config{Warn: warn, Pause: p.Pause}, sources...)
	return n, nil
}

// findMirror returns the daemon, nil when there is none and none is needed.
func (o *options) findMirror(ctx context.Context, ref origin.Ref, config string, warn func(string)) (*fetch.Mirror, error) {
	roots, err := loadCA(o.ca)
	if err != nil {
		return nil, err
	}
	plain, err := o.plainHTTP(ref)
	if err != nil {
		return nil, err
	}
	dialer := &net.Dialer{Timeout: 10 * time.Second, ControlContext: fetch.RefuseMetadata}
	mirror, err := fetch.NewMirror(fetch.MirrorConfig{
		URL: o.mirror, PlainHTTP: plain, DockerConfig: config, UserAgent: userAgent(),
		Realm: &http.Transport{
			Proxy: http.ProxyFromEnvironment, DialContext: dialer.DialContext,
			TLSClientConfig:     &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12},
			TLSHandshakeTimeout: 10 * time.Second, ResponseHeaderTimeout: 20 * time.Second, ForceAttemptHTTP2: true,
		},
	})
	if err != nil {
		return nil, &usageError{err: err}
	}
	err = mirror.Probe(ctx, probeTimeout)
	switch {
	case err == nil:
		return mirror, nil
	case ctx.Err() != nil:
		return nil, context.Cause(ctx)
	case o.only:
		return nil, &noDaemonError{err}
	case o.mirrorSet:
		warn(fmt.Sprintf("%v; reading the origin directly", err))
	}
	return nil, nil
}

// noDaemonError says that there is no daemon where one is needed.
type noDaemonError struct{ err error }

func (e *noDaemonError) Error() string { return e.err.Error() }
func (e *noDaemonError) Unwrap() error { return e.err }

func (o *options) originClient(p *process, ref origin.Ref, config string) (*origin.Client, error) {
	log := zap.NewNop()
	if o.debug {
		log = debugLogger(p)
	}
	host, err := o.host(ref)
	if err != nil {
		return nil, err
	}
	client, err := origin.New(origin.Config{
		Hosts: []origin.Host{host},
		// This process fetches for its own user only, who may name any address.
		Private:      true,
		Allow:        []string{"127.0.0.0/8", "::1/128", "fe80::/10"},
		DockerConfig: config,
		UserAgent:    userAgent(),
	}, log, nil)
	if err != nil {
		return nil, &usageError{err: err}
	}
	return client, nil
}

// plainHTTP lists the registries without TLS.
func (o *options) plainHTTP(ref origin.Ref) ([]string, error) {
	var list []string
	for _, r := range o.insecure {
		name, err := origin.ParseRegistry(r)
		if err != nil {
			return nil, &usageError{err: fmt.Errorf("--insecure-registry: %w", err)}
		}
		list = append(list, name)
	}
	if o.plain && ref.Kind != origin.KindURL {
		list = append(list, ref.Registry)
	}
	return list, nil
}

// host tells the client what it must know of the host that the user named.
func (o *options) host(ref origin.Ref) (origin.Host, error) {
	if _, err := loadCA(o.ca); err != nil {
		return origin.Host{}, err
	}
	if ref.Kind == origin.KindURL {
		u, err := url.Parse(ref.URL)
		if err != nil {
			return origin.Host{}, &usageError{err: err}
		}
		return origin.Host{Name: u.Host, Endpoint: u.Scheme + "://" + u.Host, CAFile: o.ca}, nil
	}
	plain, err := o.plainHTTP(ref)
	if err != nil {
		return origin.Host{}, err
	}
	if slices.Contains(plain, ref.Registry) {
		return origin.Host{Name: ref.Registry, Endpoint: "http://" + ref.Registry}, nil
	}
	return origin.Host{Name: ref.Registry, CAFile: o.ca}, nil
}

// loadCA returns the system's certificates and those in file; nil, which means
// the system's, without a file.
func loadCA(file string) (*x509.CertPool, error) {
	if file == "" {
		return nil, nil
	}
	pem, err := os.ReadFile(file)
	if err != nil {
		return nil, &usageError{err: fmt.Errorf("--ca: %w", err)}
	}
	roots, err := x509.SystemCertPool()
	if err != nil {
		roots = x509.NewCertPool()
	}
	if !roots.AppendCertsFromPEM(pem) {
		return nil, usagef("--ca: %s holds no PEM certificate", file)
	}
	return roots, nil
}

func userAgent() string { return "dfget/" + strings.Trim(readVersion().Version, "()") }
