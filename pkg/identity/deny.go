package identity

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
)

// deniedDir holds one empty file for each denied peer ID.
const deniedDir = "denied"

// Deny stops the node with this peer ID from joining and from renewing its
// certificate, from now on and in every scheduler that uses this directory. What
// it holds already runs out within 24 hours; Denied lets a scheduler refuse it at
// once. Denying twice is no error.
func (ca *CA) Deny(id string) error {
	path, err := ca.deniedPath(id)
	if err != nil {
		return fmt.Errorf("deny node: %w", err)
	}
	if _, err := createFile(path, nil); err != nil {
		return fmt.Errorf("deny node: %w", err)
	}
	return nil
}

// Allow takes Deny back. It is no error when the node was not denied.
func (ca *CA) Allow(id string) error {
	path, err := ca.deniedPath(id)
	if err != nil {
		return fmt.Errorf("allow node: %w", err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("allow node: %w", err)
	}
	if err := syncDir(filepath.Dir(path)); err != nil {
		return fmt.Errorf("allow node: %w", err)
	}
	return nil
}

// Denied says whether the node with this peer ID is denied. A directory that
// cannot be read is an error, to be taken for yes.
func (ca *CA) Denied(id string) (bool, error) {
	path, err := ca.deniedPath(id)
	if err != nil {
		return true, fmt.Errorf("look up denied node: %w", err)
	}
	_, err = os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return true, fmt.Errorf("look up denied node: %w", err)
	}
	return true, nil
}

// DeniedIDs lists the denied peer IDs in order.
func (ca *CA) DeniedIDs() ([]string, error) {
	entries, err := os.ReadDir(filepath.Join(ca.dir, deniedDir))
	if err != nil {
		return nil, fmt.Errorf("list denied nodes: %w", err)
	}
	var ids []string
	for _, e := range entries {
		if checkID(e.Name()) == nil {
			ids = append(ids, e.Name())
		}
	}
	slices.Sort(ids)
	return ids, nil
}

func (ca *CA) deniedPath(id string) (string, error) {
	if err := checkID(id); err != nil {
		return "", fmt.Errorf("%q is not the peer ID of a node: %w", clip(id), err)
	}
	return filepath.Join(ca.dir, deniedDir, id), nil
}
