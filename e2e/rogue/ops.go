package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/expfmt"
	"go.uber.org/zap"
)

// ops is the server at the rogue's ops address.
type ops struct {
	metrics prometheus.Gatherer
	begin   *begin
	log     *zap.Logger
	// behind is the URL of the ops server of the node behind; "" is none.
	behind string
	// ready tells whether a scheduler is attended, where there is no node behind.
	ready func() bool
}

func (o *ops) handler() (http.Handler, error) {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /begin", func(w http.ResponseWriter, _ *http.Request) {
		o.begin.now()
		w.WriteHeader(http.StatusNoContent)
	})
	mux.HandleFunc("GET /metrics", o.showMetrics)
	if o.behind == "" {
		mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
			if !o.ready() {
				http.Error(w, "no scheduler is attended", http.StatusServiceUnavailable)
			}
		})
		return mux, nil
	}
	node, err := url.Parse(o.behind)
	if err != nil {
		return nil, err
	}
	mux.Handle("/", httputil.NewSingleHostReverseProxy(node))
	return mux, nil
}

// showMetrics shows the rogue's own and then those of the node behind. No name is in
// both.
func (o *ops) showMetrics(w http.ResponseWriter, r *http.Request) {
	families, err := o.metrics.Gather()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", string(expfmt.NewFormat(expfmt.TypeTextPlain)))
	for _, f := range families {
		if _, err := expfmt.MetricFamilyToText(w, f); err != nil {
			return // the asker has gone
		}
	}
	if o.behind == "" {
		return
	}
	if err := o.copyMetrics(r.Context(), w); err != nil {
		o.log.Warn("the metrics of the node behind are missing", zap.Error(err))
	}
}

func (o *ops) copyMetrics(ctx context.Context, w io.Writer) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, o.behind+"/metrics", nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, err = io.Copy(w, resp.Body)
	return err
}

// serve answers until ctx ends.
func (o *ops) serve(ctx context.Context, listener net.Listener) error {
	handler, err := o.handler()
	if err != nil {
		return err
	}
	srv := &http.Server{Handler: handler, ReadHeaderTimeout: 5 * time.Second, ErrorLog: zap.NewStdLog(o.log)}
	defer context.AfterFunc(ctx, func() { _ = srv.Close() })() // Serve says so
	if err := srv.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("ops server at %s: %w", listener.Addr(), err)
	}
	return nil
}
