package node

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"go.uber.org/zap"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
)

// A node that runs serves its Cache on a Unix socket in its data directory, plain
// HTTP and JSON, to the user that runs it and to root: the socket's mode is the
// only guard, and a sufficient one.
//
//	GET  /cache         CacheState
//	POST /cache/remove  cacheOrder -> [CacheResult]
//	POST /cache/pin     cacheOrder -> [CacheResult]
//	POST /cache/verify  cacheOrder -> CacheResult, one a line as each is done

const (
	socketName = "control.sock"
	// socketPathLimit is how long a path to a socket may be for the kernel.
	socketPathLimit = 107
	maxOrder        = 64 << 20
	orderTimeout    = 30 * time.Second
)

// cacheOrder says what to do with which blobs.
type cacheOrder struct {
	Digests []blob.Digest `json:"digests"`
	Force   bool          `json:"force,omitempty"`
	Pinned  bool          `json:"pinned,omitempty"`
}

// socketPath is the path to the socket in dataDir, by way of an open directory where
// it is too long for the kernel. The directory is to be closed when the path is no
// longer used; it may be nil.
func socketPath(dataDir string) (string, *os.File, error) {
	path := filepath.Join(dataDir, socketName)
	if len(path) <= socketPathLimit {
		return path, nil, nil
	}
	dir, err := os.Open(dataDir)
	if err != nil {
		return "", nil, err
	}
	return fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), socketName), dir, nil
}

// cacheServer serves a Cache on its socket.
type cacheServer struct {
	listener net.Listener
	dir      *os.File // nil where the path needs none
	server   *http.Server
}

// newCacheServer listens. The store in dataDir is locked by this process, so a socket
// that is there was left by one that is gone.
func newCacheServer(ctx context.Context, dataDir string, c *Cache, log *zap.Logger) (*cacheServer, error) {
	path, dir, err := socketPath(dataDir)
	if err == nil {
		err = os.Remove(path)
		if errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
	}
	s := &cacheServer{dir: dir}
	if err == nil {
		lc := net.ListenConfig{Control: ownerOnly}
		s.listener, err = lc.Listen(ctx, "unix", path)
	}
	if err != nil {
		if dir != nil {
			_ = dir.Close()
		}
		return nil, fmt.Errorf("listening for 'dfget cache' on %s: %w", filepath.Join(dataDir, socketName), err)
	}
	s.server = &http.Server{Handler: c.handler(), ReadHeaderTimeout: orderTimeout, ErrorLog: zap.NewStdLog(log)}
	return s, nil
}

// ownerOnly gives the socket its mode before it has a name.
func ownerOnly(_, _ string, conn syscall.RawConn) error {
	var err error
	return errors.Join(conn.Control(func(fd uintptr) { err = syscall.Fchmod(int(fd), 0o600) }), err)
}

// run serves until ctx ends. A verification that runs then is cut off.
func (s *cacheServer) run(ctx context.Context) error {
	s.server.BaseContext = func(net.Listener) context.Context { return ctx }
	closed := make(chan error, 1)
	stop := context.AfterFunc(ctx, func() { closed <- s.server.Close() })
	err := s.server.Serve(s.listener)
	if stop() {
		return errors.Join(fmt.Errorf("serving 'dfget cache': %w", err), s.close())
	}
	return errors.Join(<-closed, s.close())
}

// close gives the socket free; run calls it.
func (s *cacheServer) close() error {
	err := s.listener.Close()
	if errors.Is(err, net.ErrClosed) {
		err = nil
	}
	if s.dir != nil {
		err = errors.Join(err, s.dir.Close())
	}
	return err
}

func (c *Cache) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /cache", func(w http.ResponseWriter, r *http.Request) {
		st, err := c.State(r.Context())
		answer(w, st, err)
	})
	mux.HandleFunc("POST /cache/remove", ordered(func(w http.ResponseWriter, r *http.Request, o cacheOrder) {
		results, err := c.Remove(r.Context(), o.Digests, o.Force)
		answer(w, results, err)
	}))
	mux.HandleFunc("POST /cache/pin", ordered(func(w http.ResponseWriter, r *http.Request, o cacheOrder) {
		results, err := c.SetPinned(r.Context(), o.Digests, o.Pinned)
		answer(w, results, err)
	}))
	mux.HandleFunc("POST /cache/verify", ordered(func(w http.ResponseWriter, r *http.Request, o cacheOrder) {
		w.Header().Set("Content-Type", "application/x-ndjson")
		out, flush := json.NewEncoder(w), http.NewResponseController(w)
		err := c.Verify(r.Context(), o.Digests, func(r CacheResult) error {
			return errors.Join(out.Encode(r), flush.Flush())
		})
		if err != nil {
			panic(http.ErrAbortHandler) // the client must not take what it has for all
		}
	}))
	return mux
}

func ordered(do func(http.ResponseWriter, *http.Request, cacheOrder)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var o cacheOrder
		err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxOrder)).Decode(&o)
		for i := 0; err == nil && i < len(o.Digests); i++ {
			_, err = blob.ParseDigest(string(o.Digests[i]))
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		do(w, r, o)
	}
}

func answer(w http.ResponseWriter, v any, err error) {
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	// Who asked is gone if this fails.
	_ = json.NewEncoder(w).Encode(v)
}

// CacheClient is the Cache of a node that runs. Its methods are those of Cache, and
// their errors wrap the network's.
type CacheClient struct{ http *http.Client }

// DialCache returns the Cache of the node with that dataDir. When none runs, the
// error wraps fs.ErrNotExist or ECONNREFUSED; when it belongs to another user,
// fs.ErrPermission. The caller calls Close.
func DialCache(ctx context.Context, dataDir string) (*CacheClient, error) {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		path, dir, err := socketPath(dataDir)
		if err != nil {
			return nil, err
		}
		if dir != nil {
			defer func() { _ = dir.Close() }()
		}
		var d net.Dialer
		return d.DialContext(ctx, "unix", path)
	}
	conn, err := dial(ctx, "", "")
	if err != nil {
		return nil, fmt.Errorf("reaching the node of %s: %w", dataDir, err)
	}
	_ = conn.Close()
	return &CacheClient{http: &http.Client{Transport: &http.Transport{DialContext: dial}}}, nil
}

// Close ends the connections.
func (c *CacheClient) Close() error {
	c.http.CloseIdleConnections()
	return nil
}

// State is Cache.State.
func (c *CacheClient) State(ctx context.Context) (st CacheState, err error) {
	err = c.do(ctx, http.MethodGet, "/cache", nil, func(d *json.Decoder) error { return d.Decode(&st) })
	return st, err
}

// Remove is Cache.Remove.
func (c *CacheClient) Remove(ctx context.Context, digests []blob.Digest, force bool) (results []CacheResult, err error) {
	err = c.do(ctx, http.MethodPost, "/cache/remove", cacheOrder{Digests: digests, Force: force}, func(d *json.Decoder) error { return d.Decode(&results) })
	return results, err
}

// SetPinned is Cache.SetPinned.
func (c *CacheClient) SetPinned(ctx context.Context, digests []blob.Digest, pinned bool) (results []CacheResult, err error) {
	err = c.do(ctx, http.MethodPost, "/cache/pin", cacheOrder{Digests: digests, Pinned: pinned}, func(d *json.Decoder) error { return d.Decode(&results) })
	return results, err
}

// Verify is Cache.Verify.
func (c *CacheClient) Verify(ctx context.Context, digests []blob.Digest, told func(CacheResult) error) error {
	return c.do(ctx, http.MethodPost, "/cache/verify", cacheOrder{Digests: digests}, func(d *json.Decoder) error {
		for range digests {
			var r CacheResult
			if err := d.Decode(&r); err != nil {
				return err
			}
			if err := told(r); err != nil {
				return err
			}
		}
		return nil
	})
}

func (c *CacheClient) do(ctx context.Context, method, path string, order any, read func(*json.Decoder) error) error {
	body, err := json.Marshal(order)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://node"+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	res, err := c.http.Do(req)
	if err != nil {
		return fmt.Errorf("asking the node: %w", err)
	}
	defer func() { _ = res.Body.Close() }()
	if res.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(res.Body, 4<<10))
		return fmt.Errorf("the node answers %s: %s", res.Status, bytes.TrimSpace(text))
	}
	if err := read(json.NewDecoder(res.Body)); err != nil {
		return fmt.Errorf("reading the node's answer: %w", err)
	}
	return nil
}
