package fabric

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// mark begins the names of all namespaces of this package: then come the process that
// made it, its start, and a number.
const mark = "dfl-"

// ownerOf names a process so that a later one with the same ID is another: by the
// time of its start (proc_pid_stat(5), field 22).
func ownerOf(pid int) (string, error) {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return "", err
	}
	_, rest, ok := strings.Cut(string(raw), ") ")
	fields := strings.Fields(rest)
	if !ok || len(fields) < 20 {
		return "", fmt.Errorf("/proc/%d/stat: %q is not as proc_pid_stat(5) says", pid, raw)
	}
	if fields[0] == "Z" { // killed, and nobody asked yet how it ended
		return "", fmt.Errorf("process %d has ended", pid)
	}
	return fmt.Sprintf("%d.%s", pid, fields[19]), nil
}

// Clean removes the namespaces of processes that are gone, with the links in them,
// and returns their names. Those of living ones are left alone.
func Clean() (removed []string, err error) {
	entries, err := os.ReadDir(named)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("clean up namespaces: %w", err)
	}
	var errs []error
	for _, entry := range entries {
		owner, _, ok := strings.Cut(strings.TrimPrefix(entry.Name(), mark), "-")
		if !ok || !strings.HasPrefix(entry.Name(), mark) || alive(owner) {
			continue
		}
		if err := unname(entry.Name()); err != nil {
			errs = append(errs, fmt.Errorf("remove namespace %s: %w", entry.Name(), err))
			continue
		}
		removed = append(removed, entry.Name())
	}
	return removed, errors.Join(errs...)
}

// unname takes a namespace's name away. A process that was killed while it made one
// may have left a file that is none.
func unname(name string) error {
	err := netns.DeleteNamed(name)
	if errors.Is(err, unix.EINVAL) {
		return os.Remove(filepath.Join(named, name))
	}
	return err
}

// alive tells whether the process that an owner names still runs.
func alive(owner string) bool {
	text, _, _ := strings.Cut(owner, ".")
	pid, err := strconv.Atoi(text)
	if err != nil {
		return true // not a name of ours
	}
	now, err := ownerOf(pid)
	return err == nil && now == owner
}
