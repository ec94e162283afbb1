package lockedfile_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/flockctx/flockctx"
	"github.com/flockctx/flockctx/lockedfile"
)

// exampleDir returns a folder for the files of an example.
func exampleDir() (dir string, remove func()) {
	dir, err := os.MkdirTemp("", "lockedfile-example")
	if err != nil {
		log.Fatal(err)
	}
	return dir, func() { os.RemoveAll(dir) }
}

// A counter that any number of processes may raise, and that no crash can break.
func ExampleUpdate() {
	dir, remove := exampleDir()
	defer remove()
	path := filepath.Join(dir, "counter")

	for range 3 {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		err := lockedfile.Update(ctx, path, 0o644, func(old []byte) ([]byte, error) {
			n := 0
			if old != nil { // else there was no file
				var err error
				if n, err = strconv.Atoi(string(old)); err != nil {
					return nil, err // the file stays as it is
				}
			}
			return strconv.AppendInt(nil, int64(n+1), 10), nil
		})
		cancel()
		if err != nil {
			log.Fatal(err)
		}
	}
	b, err := lockedfile.Read(context.Background(), path)
	fmt.Println(string(b), err)
	// Output: 3 <nil>
}

func ExampleWrite() {
	dir, remove := exampleDir()
	defer remove()
	path := filepath.Join(dir, "config.json")

	err := lockedfile.Write(context.Background(), path, []byte(`{"port": 8080}`), 0o640)
	if durability, ok := errors.AsType[*lockedfile.DurabilityError](err); ok {
		fmt.Println("in place, but a crash of the machine may undo it:", durability.Err)
	} else if err != nil {
		log.Fatal(err) // the file is as it was
	}
	// Who only reads needs no lock.
	b, _ := os.ReadFile(path)
	fmt.Println(string(b))
	// Output: {"port": 8080}
}

// Content of any size is written piece by piece, and put into place at the end.
func ExampleReplace() {
	dir, remove := exampleDir()
	defer remove()
	path := filepath.Join(dir, "list")

	p, err := lockedfile.Replace(context.Background(), path, 0o644)
	if err != nil {
		log.Fatal(err)
	}
	defer p.Close() // without Commit nothing has happened

	w := bufio.NewWriter(p)
	for i := range 1000 {
		fmt.Fprintln(w, i)
	}
	if err := w.Flush(); err != nil {
		log.Fatal(err)
	}
	if err := p.Commit(); err != nil {
		log.Fatal(err)
	}
	st, _ := os.Stat(path)
	fmt.Println(st.Size())
	// Output: 3890
}

// A reader that may wait a second for a writer that is at work.
func ExampleRead() {
	dir, remove := exampleDir()
	defer remove()
	path := filepath.Join(dir, "file")
	writer, err := lockedfile.Replace(context.Background(), path, 0o644)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Fprint(writer, "hello")
	if err := writer.Commit(); err != nil {
		log.Fatal(err)
	}

	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	b, err := lockedfile.Read(ctx, path)
	if busy, ok := errors.AsType[*flockctx.BusyError](err); ok {
		fmt.Println("still locked after", busy.Waited)
	}
	fmt.Println(string(b), err)
	// Output: hello <nil>
}
