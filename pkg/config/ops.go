package config

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/pprof"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"go.uber.org/zap"
)

// OpsConfig says where a process shows its state to its operators.
type OpsConfig struct {
	Listen string `yaml:"listen" doc:"Address of the plain HTTP server for /metrics, /healthz and /readyz. Ready means that this process does its work: a node serves pulls, with or without a scheduler; /readyz?verbose says what is degraded, and /readyz?strict answers 503 for that too. It tells about load, not about content, and takes no orders. Empty turns it off."`
	Pprof  bool   `yaml:"pprof" doc:"Serve Go profiles under /debug/pprof/ there. A profile costs CPU and shows memory contents to who can reach the address, so leave it off unless you look into a fault."`
}

// Validate checks the address.
func (c OpsConfig) Validate() error {
	if c.Listen == "" {
		return nil
	}
	if _, _, err := net.SplitHostPort(c.Listen); err != nil {
		return fmt.Errorf("listen %q: want host:port or :port: %w", c.Listen, err)
	}
	return nil
}

// Check tells whether some part of the process can do its work; the error says
// why not. It returns soon, and at once when ctx ends.
type Check func(ctx context.Context) error

// Ops is the operations server. It is safe for concurrent use.
type Ops struct {
	config OpsConfig
	server *http.Server
	log    *zap.Logger

	mu       sync.Mutex
	names    []string
	checks   map[string]Check
	minor    map[string]bool // checks that do not count
	listener net.Listener
}

// Bounds on one request to the operations server.
const (
	checkTimeout  = 2 * time.Second
	headerTimeout = 5 * time.Second
	idleTimeout   = 2 * time.Minute
	stopTimeout   = 3 * time.Second
	maxHeader     = 32 << 10
)

// NewRegistry returns a metrics registry that holds what every process shows:
// the Go runtime, the process, and damselfly_build_info with its component,
// which is "scheduler", "seed" or "node".
func NewRegistry(component string) *prometheus.Registry {
	build := ReadBuild()
	info := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "damselfly_build_info",
		Help: "Always 1; the labels say which program this is.",
		ConstLabels: prometheus.Labels{
			"component": component, "version": build.Version, "revision": build.Revision, "goversion": build.GoVersion,
		},
	}, func() float64 { return 1 })
	registry := prometheus.NewRegistry()
	registry.MustRegister(info, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return registry
}

// NewOps returns a server that shows what metrics gathers. It listens when it is
// told to.
func NewOps(c OpsConfig, metrics prometheus.Gatherer, log *zap.Logger) *Ops {
	o := &Ops{config: c, log: log, checks: map[string]Check{}, minor: map[string]bool{}}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(metrics, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { writeText(w, http.StatusOK, "ok\n") })
	mux.HandleFunc("GET /readyz", o.readyz)
	if c.Pprof {
		mux.HandleFunc("GET /debug/pprof/", pprof.Index)
		mux.HandleFunc("GET /debug/pprof/cmdline", pprof.Cmdline)
		mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
		mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
		mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	}
	o.server = &http.Server{
		Handler: mux, ReadHeaderTimeout: headerTimeout, IdleTimeout: idleTimeout, MaxHeaderBytes: maxHeader,
		ErrorLog: zap.NewStdLog(log),
	}
	return o
}

// Ready adds a check to /readyz, which answers 200 when all pass. One with the
// same name is replaced.
func (o *Ops) Ready(name string, check Check) { o.check(name, check, false) }

// Degraded adds a check to /readyz that is told there and does not count: when it fails
// the process does its work all the same, though not as well as it might.
func (o *Ops) Degraded(name string, check Check) { o.check(name, check, true) }

func (o *Ops) check(name string, check Check, minor bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if _, ok := o.checks[name]; !ok {
		o.names = append(o.names, name)
	}
	o.checks[name], o.minor[name] = check, minor
}

// Listen opens the server's address and returns it; nil when the server is
// turned off. Run calls it if nobody has, so that calling it is only for who
// wants to know the port, or an error, before that. After it, Run must be called
// to close the address.
func (o *Ops) Listen(ctx context.Context) (net.Addr, error) {
	if o.config.Listen == "" {
		return nil, nil
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.listener == nil {
		l, err := Listen(ctx, o.config.Listen, "ops.listen (--ops-listen)")
		if err != nil {
			return nil, fmt.Errorf("operations server: %w", err)
		}
		o.listener = l
	}
	return o.listener.Addr(), nil
}

// Run serves until ctx ends, and then returns nil when running requests are done
// or 3 seconds have passed. When the server is turned off it only waits. It is
// called once.
func (o *Ops) Run(ctx context.Context) error {
	addr, err := o.Listen(ctx)
	if err != nil {
		return err
	}
	if addr == nil {
		<-ctx.Done()
		return nil
	}
	o.mu.Lock()
	listener := o.listener
	o.mu.Unlock()
	o.log.Info("operations server listens", zap.Stringer("address", addr), zap.Bool("pprof", o.config.Pprof))
	served := make(chan error, 1)
	go func() { served <- o.server.Serve(listener) }()
	select {
	case err := <-served:
		return fmt.Errorf("operations server on %s: %w", addr, err)
	case <-ctx.Done():
	}
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
	defer cancel()
	if err := o.server.Shutdown(stop); errors.Is(err, context.DeadlineExceeded) {
		err = o.server.Close()
		if err != nil {
			o.log.Warn("operations server did not close", zap.Error(err))
		}
	}
	if err := <-served; !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("operations server on %s: %w", addr, err)
	}
	return nil
}

// readyz runs the checks. Its answer names those that fail, also where they do not count.
// With ?verbose it lists all, with the reasons; with ?strict all count.
func (o *Ops) readyz(w http.ResponseWriter, r *http.Request) {
	o.mu.Lock()
	names := append([]string(nil), o.names...)
	checks, minor := make([]Check, len(names)), make([]bool, len(names))
	for i, name := range names {
		checks[i], minor[i] = o.checks[name], o.minor[name]
	}
	o.mu.Unlock()

	ctx, cancel := context.WithTimeout(r.Context(), checkTimeout)
	defer cancel()
	var failed, degraded, all bytes.Buffer
	strict := r.URL.Query().Has("strict")
	for i, check := range checks {
		err := check(ctx)
		switch {
		case err == nil:
			fmt.Fprintf(&all, "[+] %s\n", names[i])
		case minor[i] && !strict:
			fmt.Fprintf(&degraded, "degraded: %s\n", names[i])
			fmt.Fprintf(&all, "[~] %s: %v\n", names[i], err)
		default:
			fmt.Fprintf(&failed, "%s is not ready\n", names[i])
			fmt.Fprintf(&all, "[-] %s: %v\n", names[i], err)
		}
	}
	status, text := http.StatusOK, "ok\n"
	if failed.Len() > 0 {
		status, text = http.StatusServiceUnavailable, failed.String()
	}
	text += degraded.String()
	if r.URL.Query().Has("verbose") {
		text = all.String()
		if failed.Len() == 0 {
			text += "ok\n"
		}
	}
	writeText(w, status, text)
}

func writeText(w http.ResponseWriter, status int, text string) {
	h := w.Header()
	h.Set("Content-Type", "text/plain; charset=utf-8")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_, _ = w.Write([]byte(text)) // the asker may be gone
}
