package flockdebug_test

import (
	"bytes"
	"flag"
	"fmt"
	"image"
	"image/color"
	"image/png"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/flockctx/flockctx/flockdebug"
)

var pictures = flag.String("pictures", "", "directory for pictures of the page")

// chromium returns the browser, or skips the test.
func chromium(t *testing.T) string {
	t.Helper()
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome"} {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	t.Skip("SKIP: the page in a browser: Chromium is not installed")
	return ""
}

// screenshot returns what the browser makes of url in a window of that size.
func screenshot(t *testing.T, browser, url string, width, height int, dark bool) (image.Image, []byte) {
	t.Helper()
	dir := t.TempDir()
	file := filepath.Join(dir, "page.png")
	scheme := 1
	if dark {
		scheme = 0
	}
	cmd := exec.Command(browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
		"--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
		"--user-data-dir="+filepath.Join(dir, "user"), "--hide-scrollbars",
		fmt.Sprintf("--blink-settings=preferredColorScheme=%d", scheme),
		fmt.Sprintf("--window-size=%d,%d", width, height), "--screenshot="+file, url)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	must(t, cmd.Start())
	hung := time.AfterFunc(2*time.Minute, func() { cmd.Process.Kill() })
	err := cmd.Wait()
	hung.Stop()
	if err != nil {
		t.Fatalf("%v\n%s", err, out.String())
	}
	b, err := os.ReadFile(file)
	must(t, err)
	img, err := png.Decode(bytes.NewReader(b))
	must(t, err)
	return img, b
}

// near reports whether two colours look alike.
func near(a, b color.Color) bool {
	ar, ag, ab, _ := a.RGBA()
	br, bg, bb, _ := b.RGBA()
	off := func(x, y uint32) bool { return max(x, y)-min(x, y) > 6<<8 }
	return !off(ar, br) && !off(ag, bg) && !off(ab, bb)
}

// count returns how many pixels of a part of img look like c.
func count(img image.Image, part image.Rectangle, c color.Color) (n int) {
	for y := part.Min.Y; y < part.Max.Y; y++ {
		for x := part.Min.X; x < part.Max.X; x++ {
			if near(img.At(x, y), c) {
				n++
			}
		}
	}
	return n
}

// The page in a browser: in the colours that the reader prefers, as wide as the window,
// with the cycle marked at first sight, and without asking for anything else.
func TestInChromium(t *testing.T) {
	if testing.Short() {
		t.Skip("a browser takes long to start")
	}
	browser := chromium(t)
	record(t)
	program := os.Args[0]
	os.Args[0] = "shop"
	defer func() { os.Args[0] = program }()
	if *pictures != "" {
		abs, err := filepath.Abs(*pictures)
		must(t, err)
		*pictures = abs
	}
	t.Chdir(t.TempDir()) // so that the paths are short
	must(t, os.MkdirAll("var/lock", 0o755))
	scene(t, "var/lock")
	time.Sleep(1200 * time.Millisecond) // some of it is long by then

	var mu sync.Mutex
	var asked []string
	mux := http.NewServeMux()
	mux.Handle("/ops/debug/locks", flockdebug.Handler())
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		asked = append(asked, r.URL.Path)
		mu.Unlock()
		mux.ServeHTTP(w, r)
	}))
	defer srv.Close()

	for _, c := range []struct {
		name          string
		width, height int
		dark          bool
		page, bad     color.RGBA // as the style sheet has them
	}{
		{"phone-light", 390, 844, false, color.RGBA{0xf5, 0xf6, 0xf8, 255}, color.RGBA{0xb3, 0x26, 0x1e, 255}},
		{"phone-dark", 390, 844, true, color.RGBA{0x14, 0x17, 0x1b, 255}, color.RGBA{0xff, 0x8a, 0x80, 255}},
		{"desktop-light", 1280, 800, false, color.RGBA{0xf5, 0xf6, 0xf8, 255}, color.RGBA{0xb3, 0x26, 0x1e, 255}},
		{"desktop-dark", 1280, 800, true, color.RGBA{0x14, 0x17, 0x1b, 255}, color.RGBA{0xff, 0x8a, 0x80, 255}},
	} {
		t.Run(c.name, func(t *testing.T) {
			img, b := screenshot(t, browser, srv.URL+"/ops/debug/locks", c.width, c.height, c.dark)
			if *pictures != "" {
				must(t, os.WriteFile(filepath.Join(*pictures, "locks-"+c.name+".png"), b, 0o644))
			}
			if size := img.Bounds(); size.Dx() != c.width || size.Dy() != c.height {
				t.Fatalf("the picture is %v", size)
			}
			// Both margins are empty: nothing is wider than the window.
			for _, x := range []int{0, c.width - 8} {
				if part := image.Rect(x, 0, x+8, c.height); count(img, part, c.page) != 8*c.height {
					t.Errorf("the margin at %d is not empty", x)
				}
			}
			// The alarm's frame, and those of the boxes in the cycle.
			if n := count(img, img.Bounds(), c.bad); n < 2*c.width {
				t.Errorf("%d pixels are in the colour of the alarm", n)
			}
		})
	}
	mu.Lock()
	defer mu.Unlock()
	for _, path := range asked {
		if path != "/ops/debug/locks" && !strings.HasSuffix(path, "/favicon.ico") { // which the browser asks for by itself
			t.Errorf("the browser asked for %s", path)
		}
	}
}
