package fabric

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/vishvananda/netns"
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
		if err := netns.DeleteNamed(entry.Name()); err != nil {
			errs = append(errs, fmt.Errorf("remove namespace %s: %w", entry.Name(), err))
			continue
		}
		removed = append(removed, entry.Name())
	}
	return removed, errors.Join(errs...)
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
