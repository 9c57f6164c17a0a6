package main

import (
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"
)

func zeroTime() time.Time { return time.Time{} }

// waitForBytes returns when the file at path has n bytes.
func waitForBytes(t *testing.T, path string, n int64) {
	t.Helper()
	waitFor(t, func() bool {
		info, err := os.Stat(path)
		return err == nil && info.Size() >= n
	})
}

// waitForTree returns when the files below dir have n bytes in all.
func waitForTree(t *testing.T, dir string, n int64) {
	t.Helper()
	waitFor(t, func() bool {
		var sum int64
		_ = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
			if err == nil && d.Type().IsRegular() {
				if info, err := d.Info(); err == nil {
					sum += info.Size()
				}
			}
			return nil
		})
		return sum >= n
	})
}

func waitFor(t *testing.T, ready func() bool) {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(20 * time.Second)
	for {
		if ready() {
			return
		}
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatal("waited in vain")
		}
	}
}
