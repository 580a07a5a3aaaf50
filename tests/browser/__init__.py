"""Pages in a browser: Debian's chromium and chromium-driver, led by Selenium."""
