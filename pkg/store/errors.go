package store

import (
	"errors"
	"fmt"
	"io/fs"
	"syscall"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
)

// Errors that callers tell apart with errors.Is. Those that come back carry the
// blob, the cause and, where there is something to do, what to do.
var (
	// ErrLocked: another process, or another Store of this one, has the directory.
	ErrLocked = errors.New("directory is in use by another daemon")
	// ErrClosed: the store was closed.
	ErrClosed = errors.New("store is closed")
	// ErrNotHeld: the store has no such blob.
	ErrNotHeld = errors.New("blob is not held")
	// ErrInUse: somebody reads or writes the blob, or the file to be shared.
	ErrInUse = errors.New("blob is in use")
	// ErrRemoved: the blob was removed or evicted while it was in use.
	ErrRemoved = errors.New("blob was removed from the store")
	// ErrDamaged: the disk lost bytes of the blob. What was lost is no longer
	// held and can be put again.
	ErrDamaged = errors.New("disk lost bytes of the blob")
	// ErrReset: the blob was started over after this reader had handed out bytes
	// that are no longer vouched for. They must not be completed.
	ErrReset = errors.New("blob was started over")
	// ErrNoSpace: the limit of the store or the disk leaves no room.
	ErrNoSpace = errors.New("no space in the store")
	// ErrMissing: a piece that was asked for is not held, or not to be served yet.
	ErrMissing = errors.New("piece is not held")
	// ErrCannotShare: the store and the file are not where they can share bytes. What
	// wraps it says what keeps them from it, and what to do.
	ErrCannotShare = errors.New("the store and the runtime's files cannot share bytes")
	// ErrSize: the blob is held with another size.
	ErrSize = errors.New("blob is held with another size")
	// ErrBadDigest: the bytes in order do not hash to the digest. It wraps
	// blob.ErrMismatch.
	ErrBadDigest = fmt.Errorf("bytes do not hash to the digest: %w", blob.ErrMismatch)
)

// isFull tells whether a disk or a quota was full.
func isFull(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}

// isScarcity tells whether the process or the machine was short of something,
// which says nothing about the file that was asked for.
func isScarcity(err error) bool {
	return errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE) ||
		errors.Is(err, syscall.ENOMEM) || errors.Is(err, syscall.EINTR)
}

// full marks err with ErrNoSpace when a disk or a quota was full.
func full(err error) error {
	if isFull(err) {
		return fmt.Errorf("%w: the disk is full and no unused blob is left to evict; free space on it or lower the limit of the store: %w", ErrNoSpace, err)
	}
	return err
}

// absent is nil for an error that says that there is no such file.
func absent(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
