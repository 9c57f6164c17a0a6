package proxytest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"testing"
	"time"

	"github.com/damselfly-p2p/damselfly/pkg/origin"
	"github.com/damselfly-p2p/damselfly/pkg/proxy"
)

// World is a Tasks with the origin that it reads.
type World struct {
	Tasks proxy.Tasks
	// Kept returns a request for data that the origin keeps.
	Kept func(data []byte) proxy.Request
	// Stuck returns a request for data that the origin keeps, of which not a byte
	// comes until release is called.
	Stuck func(data []byte) (req proxy.Request, release func())
	// Refused returns a request that the origin answers with a status.
	Refused func(status int) proxy.Request
}

// TestTasks checks what pkg/proxy relies on. world is called for each subtest.
func TestTasks(t *testing.T, world func(t *testing.T) World) {
	data := bytes.Repeat([]byte("damselfly "), 60_000)
	short, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	open := func(t *testing.T, w World, req proxy.Request) proxy.Handle {
		t.Helper()
		h, err := w.Tasks.Open(short, req)
		if err != nil {
			t.Fatal(err)
		}
		return h
	}
	t.Run("reads the whole blob and then has it as a file", func(t *testing.T) {
		w := world(t)
		h := open(t, w, w.Kept(data))
		if n, err := h.Content().Seek(0, io.SeekEnd); err != nil || n != int64(len(data)) {
			t.Fatalf("size %d, %v", n, err)
		}
		if _, err := h.Content().Seek(0, io.SeekStart); err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(h.Content()); err != nil || !bytes.Equal(got, data) {
			t.Fatalf("%d bytes, %v", len(got), err)
		}
		f, ok := h.Sealed()
		if !ok {
			t.Fatal("not sealed although all of it was read")
		}
		defer f.Close()
		if got, err := io.ReadAll(f); err != nil || !bytes.Equal(got, data) {
			t.Fatalf("file has %d bytes, %v", len(got), err)
		}
		if err := h.Close(); err != nil {
			t.Fatal(err)
		}
	})
	t.Run("finds the size out", func(t *testing.T) {
		w := world(t)
		req := w.Kept(data)
		req.Size = 0
		h := open(t, w, req)
		defer h.Close()
		if n, err := h.Content().Seek(0, io.SeekEnd); err != nil || n != int64(len(data)) {
			t.Fatalf("size %d, %v", n, err)
		}
	})
	t.Run("keeps the origin's refusal", func(t *testing.T) {
		for _, status := range []int{http.StatusUnauthorized, http.StatusNotFound} {
			w := world(t)
			h, err := w.Tasks.Open(short, w.Refused(status))
			if err == nil {
				err = h.Ready(short, 0)
				h.Close()
			}
			var se *origin.StatusError
			if !errors.As(err, &se) || se.Code != status {
				t.Fatalf("%d: got %v", status, err)
			}
		}
	})
	t.Run("ends what waits when its client goes, and no other", func(t *testing.T) {
		w := world(t)
		req, release := w.Stuck(data)
		ctx, leave := context.WithCancel(short)
		var gone [2]proxy.Handle
		for i := range gone {
			var err error
			if gone[i], err = w.Tasks.Open(ctx, req); err != nil {
				t.Fatal(err)
			}
		}
		stays := open(t, w, req)
		defer stays.Close()
		errs := make(chan error, 2)
		go func() { errs <- gone[0].Ready(ctx, 0) }()
		go func() { _, err := gone[1].Content().Read(make([]byte, 1)); errs <- err }()
		leave()
		for range 2 {
			if err := <-errs; err == nil {
				t.Fatal("no error although the client went")
			}
		}
		for _, h := range gone {
			if err := h.Close(); err != nil {
				t.Fatal(err)
			}
		}
		release()
		if got, err := io.ReadAll(stays.Content()); err != nil || !bytes.Equal(got, data) {
			t.Fatalf("the other client got %d bytes, %v", len(got), err)
		}
	})
}
