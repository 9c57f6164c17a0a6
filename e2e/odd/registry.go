package odd

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// Config says which registries to serve.
type Config struct {
	// Dir is a directory for the CA's certificate.
	Dir string
	// Registries are the behaviours of each registry. Each gets a host of its own, so
	// that none disturbs another's.
	Registries [][]Behaviour
}

// Server is some registries under one CA.
type Server struct {
	// CAFile is the PEM certificate of who signs for them.
	CAFile string
	// Registries are in the order of Config.
	Registries []*Registry

	control *Registry // a healthy one, which is not among Registries
	servers []*http.Server
}

// Registry is one registry: at its host, and with a storage and a token realm on
// another one.
type Registry struct {
	// Host is its host:port.
	Host string

	run        string // what makes this run's images differ from those of another
	other      string // host:port of the storage
	behaviours map[string]*Behaviour
	order      []*Behaviour
	only       *Behaviour // nil: there are several

	mu     sync.Mutex
	images map[string]*image
	repos  map[string]*repo
	links  map[string]*link
	tokens map[string]string // the repository that a token is for
}

// Counts is what a repository has been asked for.
type Counts struct {
	Requests int
	// BlobBytes is the bytes sent of config and layers.
	BlobBytes int64
}

// repo is a repository and what its clients have done.
type repo struct {
	name      string
	behaviour *Behaviour
	*image

	mu     sync.Mutex
	counts Counts
	seen   map[string]int  // requests by rule and kind
	ready  map[string]bool // work that is done
}

// Start serves registries until Close.
func Start(cfg Config) (*Server, error) {
	s := &Server{CAFile: filepath.Join(cfg.Dir, "odd-ca.crt")}
	certificate, err := newCA(s.CAFile)
	if err != nil {
		return nil, fmt.Errorf("odd registry: %w", err)
	}
	for _, behaviours := range append(cfg.Registries, []Behaviour{{Name: "control"}}) {
		if err := s.add(behaviours, certificate); err != nil {
			s.Close()
			return nil, fmt.Errorf("odd registry: %w", err)
		}
	}
	last := len(s.Registries) - 1
	s.Registries, s.control = s.Registries[:last], s.Registries[last]
	return s, nil
}

// Hosts is the hosts of registries, and those of their storages that a node's
// configuration names.
func (s *Server) Hosts() (registries, storages []string) {
	for _, r := range append(s.Registries, s.control) {
		registries = append(registries, r.Host)
		if r.only == nil || !r.only.Unlisted {
			storages = append(storages, r.other)
		}
	}
	return registries, storages
}

func (s *Server) add(behaviours []Behaviour, certificate tls.Certificate) error {
	r := &Registry{
		run: rand.Text(), behaviours: map[string]*Behaviour{},
		images: map[string]*image{}, repos: map[string]*repo{}, links: map[string]*link{}, tokens: map[string]string{},
	}
	var http1 bool
	for i := range behaviours {
		b := &behaviours[i]
		r.behaviours[b.Name], http1 = b, b.HTTP1
		r.order = append(r.order, b)
		if r.only = b; len(behaviours) > 1 {
			r.only = nil
		}
	}
	var err error
	if r.Host, err = s.listen("127.0.0.1:0", http.HandlerFunc(r.serve), certificate, http1); err != nil {
		return err
	}
	// Another address is another host, which needs no resolver.
	if r.other, err = s.listen("127.0.0.2:0", http.HandlerFunc(r.serveOther), certificate, http1); err != nil {
		return err
	}
	s.Registries = append(s.Registries, r)
	return nil
}

func (s *Server) listen(addr string, h http.Handler, certificate tls.Certificate, http1 bool) (string, error) {
	listener, err := net.Listen("tcp", addr)
	if err != nil {
		return "", err
	}
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(!http1)
	server := &http.Server{
		Handler: h, Protocols: protocols,
		TLSConfig: &tls.Config{Certificates: []tls.Certificate{certificate}},
		ErrorLog:  log.New(io.Discard, "", 0),
	}
	s.servers = append(s.servers, server)
	go func() { _ = server.ServeTLS(listener, "", "") }()
	return listener.Addr().String(), nil
}

// Close ends every connection.
func (s *Server) Close() {
	for _, server := range s.servers {
		_ = server.Close()
	}
}

// Counts is what a repository has been asked for so far.
func (r *Registry) Counts(repository string) Counts {
	repo, err := r.repo(repository)
	if err != nil {
		return Counts{}
	}
	repo.mu.Lock()
	defer repo.mu.Unlock()
	return repo.counts
}

var errNoRepository = errors.New("no behaviour has this repository")

// repo is a repository, made now if nobody asked for it before.
func (r *Registry) repo(name string) (*repo, error) {
	first, _ := cutFirst(name)
	behaviour := r.behaviours[first]
	if behaviour == nil {
		return nil, errNoRepository
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if known := r.repos[name]; known != nil {
		return known, nil
	}
	// One client's two repositories may have the same content: only one is behind a node.
	of, _, _ := strings.Cut(name, "-direct")
	of, _, _ = strings.Cut(of, "-node")
	img := r.images[of]
	if img == nil {
		var err error
		if img, err = newImage(r.run+of, behaviour.Shape); err != nil {
			return nil, err
		}
		r.images[of] = img
	}
	made := &repo{name: name, behaviour: behaviour, image: img, seen: map[string]int{}, ready: map[string]bool{}}
	r.repos[name] = made
	return made, nil
}

// forget drops what a client's two repositories hold.
func (r *Registry) forget(name string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.images, name)
	delete(r.repos, name+"-direct")
	delete(r.repos, name+"-node")
}

// wait waits, and errs when ctx ends before.
func wait(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return nil
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
