package origin

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/crypto/bcrypt"

	"github.com/damselfly-p2p/damselfly/e2e/process"
	"github.com/damselfly-p2p/damselfly/e2e/sample"
)

// Kind is how a registry lets clients in.
type Kind string

// The kinds of registry.
const (
	Public Kind = "public"
	Basic  Kind = "basic"
	Token  Kind = "token"
)

// Config says which registry to start.
type Config struct {
	// Dir holds its files; it is the registry's own.
	Dir string
	// Registry and Gateway are the programs of distribution and versitygw.
	Registry string
	Gateway  string
	Kind     Kind
	// Bucket stores blobs in a bucket and redirects to it by presigned URLs.
	Bucket bool
	// Plain leaves TLS out: HTTP/1.1 in the clear.
	Plain bool
	// Nginx stands before the front, which then speaks HTTP/1.1 without TLS; nil: none.
	Nginx *Nginx
	// Wire is how the registry, its realm and its bucket speak. Without Plain they have
	// an authority of their own where it names none.
	Wire Wire
}

// Origin is a registry with the front that clients of it must use.
type Origin struct {
	*Front
	Kind Kind
	// CAFile is the certificate of the authority that registry, realm and bucket have
	// their certificates from; empty without TLS.
	CAFile string
	// Client reaches registry, realm and bucket without a node.
	Client *http.Client

	authority *Authority
	direct    string // the registry's own URL
	realm     *Realm
	bucket    *Front
	processes []*process.Process
}

// startTimeout bounds how long a registry may take to answer.
const startTimeout = 30 * time.Second

// Start starts a registry and waits until it answers. The caller closes it.
func Start(ctx context.Context, cfg Config) (*Origin, error) {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	o := &Origin{Kind: cfg.Kind}
	if err := o.start(ctx, cfg); err != nil {
		o.Close()
		return nil, fmt.Errorf("start origin: %w", err)
	}
	return o, nil
}

func (o *Origin) start(ctx context.Context, cfg Config) error {
	counter := NewCounter()
	if err := os.MkdirAll(cfg.Dir, 0o755); err != nil {
		return err
	}
	if err := o.trust(&cfg); err != nil {
		return err
	}
	storage := fmt.Sprintf("{filesystem: {rootdirectory: %s}}", filepath.Join(cfg.Dir, "files"))
	if cfg.Bucket {
		if err := o.startBucket(ctx, cfg, counter); err != nil {
			return err
		}
		storage = fmt.Sprintf("{s3: {region: us-east-1, bucket: images, accesskey: AKID, secretkey: SECRETKEY1, "+
			"regionendpoint: %q, forcepathstyle: true, secure: %t, v4auth: true}, redirect: {disable: false}}", o.bucket.URL, !cfg.Plain)
	}
	auth, err := o.auth(cfg)
	if err != nil {
		return err
	}
	addr, err := process.FreeAddr()
	if err != nil {
		return err
	}
	file := filepath.Join(cfg.Dir, "registry.yaml")
	text := fmt.Sprintf("version: 0.1\nlog: {level: warn}\nstorage: %s\nhttp: {addr: %q}\n%s", storage, addr, auth)
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		return err
	}
	env := []string{"OTEL_TRACES_EXPORTER=none"}
	if !cfg.Plain {
		env = append(env, "SSL_CERT_FILE="+o.CAFile) // its bucket has a certificate, too
	}
	registry, err := process.Start(process.Spec{
		Name: "registry", Path: cfg.Registry, Args: []string{"serve", file}, Dir: cfg.Dir, Env: env,
	})
	if err != nil {
		return err
	}
	o.processes = append(o.processes, registry)
	o.direct = "http://" + addr
	if err := registry.Ready(ctx, process.Answers(o.direct+"/v2/")); err != nil {
		return err
	}
	wire := cfg.Wire
	if cfg.Nginx != nil {
		wire.Authority = nil
	}
	if o.Front, err = NewFront(o.direct, counter, wire); err != nil || cfg.Nginx == nil {
		return err
	}
	var nginx *process.Process
	o.URL, nginx, err = cfg.Nginx.start(ctx, o, cfg, o.URL)
	if nginx != nil {
		o.processes = append(o.processes, nginx)
	}
	o.Reset() // it was asked whether it is there
	return err
}

// trust gives the configuration an authority, unless it has one or wants none, and
// the origin a client that trusts it.
func (o *Origin) trust(cfg *Config) (err error) {
	if cfg.Plain {
		cfg.Wire.Authority = nil
	} else if cfg.Wire.Authority == nil {
		if cfg.Wire.Authority, err = NewAuthority(cfg.Dir); err != nil {
			return err
		}
	}
	if o.authority = cfg.Wire.Authority; o.authority != nil {
		o.CAFile = o.authority.CAFile
	}
	o.Client = &http.Client{Transport: o.Transport()}
	return nil
}

// Transport makes a transport for a client of the origin, as Authority.Transport does.
func (o *Origin) Transport() *http.Transport { return o.authority.Transport() }

// auth makes the part of the registry's configuration that lets clients in.
func (o *Origin) auth(cfg Config) (string, error) {
	switch cfg.Kind {
	case Basic:
		hash, err := bcrypt.GenerateFromPassword([]byte(Password), bcrypt.MinCost)
		if err != nil {
			return "", err
		}
		file := filepath.Join(cfg.Dir, "htpasswd")
		if err := os.WriteFile(file, fmt.Appendf(nil, "%s:%s\n", Reader, hash), 0o600); err != nil {
			return "", err
		}
		return fmt.Sprintf("auth: {htpasswd: {realm: test, path: %s}}\n", file), nil
	case Token:
		var err error
		if o.realm, err = newRealm(cfg.Wire); err != nil {
			return "", err
		}
		keys, err := o.realm.keySet()
		if err != nil {
			return "", err
		}
		file := filepath.Join(cfg.Dir, "jwks.json")
		if err := os.WriteFile(file, keys, 0o600); err != nil {
			return "", err
		}
		return fmt.Sprintf("auth: {token: {realm: %q, service: %q, issuer: %q, jwks: %s}}\n", o.realm.URL, service, issuer, file), nil
	default:
		return "", nil
	}
}

// startBucket starts an S3 server with one bucket, and a front of it that counts
// what presigned URLs send.
func (o *Origin) startBucket(ctx context.Context, cfg Config, counter *Counter) error {
	dir := filepath.Join(cfg.Dir, "s3")
	if err := os.MkdirAll(filepath.Join(dir, "images"), 0o755); err != nil {
		return err
	}
	addr, err := process.FreeAddr()
	if err != nil {
		return err
	}
	gateway, err := process.Start(process.Spec{
		Name: "versitygw", Path: cfg.Gateway, Dir: cfg.Dir,
		Args: []string{"--access", "AKID", "--secret", "SECRETKEY1", "--port", addr, "posix", dir},
	})
	if err != nil {
		return err
	}
	o.processes = append(o.processes, gateway)
	if err := gateway.Ready(ctx, process.Answers("http://"+addr+"/")); err != nil {
		return err
	}
	o.bucket, err = NewFront("http://"+addr, counter, cfg.Wire)
	return err
}

// Beside starts a server of a handler under the origin's authority, which the caller
// closes. What it sends is not counted.
func (o *Origin) Beside(handler http.Handler, wire Wire) (*Front, error) {
	wire.Authority = o.authority
	return NewHandlerFront(handler, NewCounter(), wire)
}

// Bucket is the front of the bucket, nil when blobs are in files.
func (o *Origin) Bucket() *Front { return o.bucket }

// Push uploads an image beside the front, so that nothing of it is counted.
func (o *Origin) Push(ctx context.Context, img *sample.Image, repository, tag string) error {
	authorization, err := o.PushAuthorization(Reader, repository)
	if err != nil {
		return err
	}
	return img.Push(ctx, o.direct, repository, tag, authorization)
}

// Authorization is the header with which user may pull from repository, as a
// client would get it; "" for the empty user, who sends none.
func (o *Origin) Authorization(user, repository string) (string, error) {
	return o.authorization(user, repository, "pull")
}

// PushAuthorization is Authorization for somebody who pushes, too.
func (o *Origin) PushAuthorization(user, repository string) (string, error) {
	return o.authorization(user, repository, "pull,push")
}

// As makes the header with which user may pull, by repository, as Authorization does.
func (o *Origin) As(user string) func(repository string) (string, error) {
	return func(repository string) (string, error) { return o.Authorization(user, repository) }
}

func (o *Origin) authorization(user, repository, actions string) (string, error) {
	switch {
	case o.Kind == Public || user == "":
		return "", nil
	case o.Kind == Basic:
		return BasicAuth(user), nil
	}
	var scopes []string
	if user == Reader {
		scopes = append(scopes, strings.Join([]string{"repository", repository, actions}, ":"))
	}
	token, err := o.realm.Token(scopes...)
	return "Bearer " + token, err
}

// Close stops everything that Start started.
func (o *Origin) Close() {
	if o.Front != nil {
		o.Front.Close()
	}
	if o.bucket != nil {
		o.bucket.Close()
	}
	if o.realm != nil {
		o.realm.close()
	}
	if o.Client != nil {
		o.Client.CloseIdleConnections()
	}
	for _, p := range o.processes {
		// Neither program is asked to end well: their data is thrown away.
		p.Kill()
	}
}
