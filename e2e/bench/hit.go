package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"

	"github.com/damselfly-p2p/damselfly/e2e/cluster"
)

// get reads a whole URL and drops what comes. It errs unless that has size bytes.
func get(ctx context.Context, client *http.Client, url string, size int64) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 1000)) // for the message alone
		return fmt.Errorf("GET %s: %s: %s", url, resp.Status, text)
	}
	n, buf := int64(0), make([]byte, largeWrite)
	for {
		got, err := resp.Body.Read(buf)
		n += int64(got)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fmt.Errorf("GET %s: after %d bytes: %w", url, n, err)
		}
	}
	if n != size {
		return fmt.Errorf("GET %s: %d bytes came, want %d", url, n, size)
	}
	return nil
}

// through is the URL under which a node's mirror serves something of the image.
func through(node *cluster.Member, path string) string {
	return fmt.Sprintf("%s/v2/%s/%s?ns=%s", node.Mirror, repository, path, registryName)
}

// hits measures a blob that a node holds, against a plain file server.
func (b *bench) hits(ctx context.Context, r *report, f *far, node *cluster.Member, l layer) error {
	client := &http.Client{Transport: &http.Transport{}}
	defer client.CloseIdleConnections()
	url := through(node, "blobs/"+string(l.digest))
	if err := get(ctx, client, url, l.size); err != nil {
		return fmt.Errorf("pull a blob: %w", err)
	}
	file, err := find(node.DataDir, l)
	if err != nil {
		return err
	}
	// A name of its own, for the node gives the file another when it has synced it.
	if err := os.Link(file, filepath.Join(b.dir, "same")); err != nil {
		return err
	}
	parts := make([]slice, max(4, b.options.rounds/2))
	for i := range parts {
		parts[i].Bytes = l.size
	}
	plain := "http://" + f.Files + "/same"
	return b.takeTurns(ctx, r, parts, b.chosen([]task{
		{name: rowHit, pid: node.ProcessID(), move: func(ctx context.Context, _ slice) error { return get(ctx, client, url, l.size) }},
		{name: rowFiles, pid: f.pid(), move: func(ctx context.Context, _ slice) error { return get(ctx, client, plain, l.size) }},
	}))
}

// find is the file in which a node keeps a layer.
func find(dataDir string, l layer) (file string, err error) {
	_, hex, _ := strings.Cut(string(l.digest), ":")
	err = filepath.WalkDir(dataDir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() || !strings.HasPrefix(e.Name(), hex) {
			return err
		}
		if info, err := e.Info(); err == nil && info.Size() == l.size {
			file = path
		}
		return nil
	})
	if err == nil && file == "" {
		err = fmt.Errorf("the node keeps no file of %d bytes for %s below %s", l.size, l.digest, dataDir)
	}
	return file, err
}
