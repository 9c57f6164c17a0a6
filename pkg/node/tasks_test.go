package node

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"go.uber.org/zap"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
	"github.com/damselfly-p2p/damselfly/pkg/origin"
	"github.com/damselfly-p2p/damselfly/pkg/proxy"
	"github.com/damselfly-p2p/damselfly/pkg/proxy/proxytest"
	"github.com/damselfly-p2p/damselfly/pkg/store"
	"github.com/damselfly-p2p/damselfly/pkg/task"
)

// What the proxy relies on holds for the real tasks, over a real store and a
// registry on loopback.
func TestTasksKeepWhatTheProxyReliesOn(t *testing.T) {
	proxytest.TestTasks(t, func(t *testing.T) proxytest.World {
		w := &tasksWorld{t: t, blobs: map[string][]byte{}, gates: map[string]chan struct{}{}}
		srv := httptest.NewServer(w)
		origins, err := origin.New(origin.Config{Hosts: []origin.Host{{Name: "registry.test", Endpoint: srv.URL}}}, zap.NewNop(), nil)
		if err != nil {
			t.Fatal(err)
		}
		st, err := store.Open(store.Config{Dir: t.TempDir()}, zap.NewNop())
		if err != nil {
			t.Fatal(err)
		}
		l := &link{}
		tasks := task.New(task.Config{}, st, l, l, origins, zap.NewNop(), nil)
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- tasks.Run(ctx) }()
		t.Cleanup(func() {
			cancel()
			<-done
			origins.Close()
			srv.CloseClientConnections()
			srv.Close()
			if err := st.Close(); err != nil {
				t.Error(err)
			}
		})
		return proxytest.World{Tasks: opener{tasks}, Kept: w.kept, Stuck: w.stuck, Refused: w.refused}
	})
}

// tasksWorld is a registry whose blobs may be stuck or refused.
type tasksWorld struct {
	t       *testing.T
	blobs   map[string][]byte
	gates   map[string]chan struct{}
	refusal int
}

func (w *tasksWorld) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	digest := r.URL.Path[strings.LastIndex(r.URL.Path, "/")+1:]
	data, ok := w.blobs[digest]
	switch {
	case w.refusal != 0:
		rw.WriteHeader(w.refusal)
		return
	case !ok:
		rw.WriteHeader(http.StatusNotFound)
		return
	}
	rw.Header().Set("Content-Length", fmt.Sprint(len(data)))
	if r.Method == http.MethodHead {
		return
	}
	if gate, ok := w.gates[digest]; ok {
		select {
		case <-gate:
		case <-r.Context().Done():
			return
		}
	}
	_, _ = rw.Write(data)
}

func (w *tasksWorld) kept(data []byte) proxy.Request {
	d := blob.FromBytes(data)
	w.blobs[d.String()] = data
	return proxy.Request{
		Digest: d, Size: int64(len(data)), Length: -1, Header: http.Header{},
		Ref: origin.Ref{Kind: origin.KindBlob, Registry: "registry.test", Repository: "app", Reference: d.String()},
	}
}

func (w *tasksWorld) stuck(data []byte) (proxy.Request, func()) {
	req := w.kept(data)
	gate := make(chan struct{})
	w.gates[req.Digest.String()] = gate
	return req, func() { close(gate) }
}

func (w *tasksWorld) refused(status int) proxy.Request {
	req := w.kept([]byte(fmt.Sprint("refused with ", status)))
	w.refusal = status
	return req
}
