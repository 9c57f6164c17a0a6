package partial

import (
	"fmt"
	"io"
	"os"
)

// maxNote bounds what is read back of a note.
const maxNote = 16 << 10

// Note returns what SetNote left beside the bytes in this or an earlier run,
// nil when there is nothing or it cannot be trusted.
func (p *File) Note() []byte {
	if _, err := p.dir.Lstat(p.noteName()); err != nil {
		return nil
	}
	f, err := openOwn(p.dir, p.noteName())
	if err != nil {
		return nil
	}
	defer f.Close()
	note, err := io.ReadAll(io.LimitReader(f, maxNote+1))
	if err != nil || len(note) > maxNote {
		return nil
	}
	return note
}

// SetNote keeps note beside the bytes: what a later run must know to go on from
// them. Set it while the File is empty, so that a crash in between cannot join
// old bytes with a new note.
func (p *File) SetNote(note []byte) error {
	p.dropNote()
	f, err := p.dir.OpenFile(p.noteName(), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("create %s: %w", shown(p.dir, p.noteName()), err)
	}
	_, err = f.Write(note)
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", shown(p.dir, p.noteName()), err)
	}
	return nil
}

func (p *File) noteName() string { return p.hidden + ".note" }

// dropNote is best effort: a note without its bytes does no harm.
func (p *File) dropNote() { _ = p.dir.Remove(p.noteName()) }
