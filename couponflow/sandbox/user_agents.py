"""User agents as they are seen in India: the devices of shoppers, and who crawls their links."""

_CHROME = "AppleWebKit/537.36 (KHTML, like Gecko) Chrome"
_WEBKIT = "AppleWebKit/605.1.15 (KHTML, like Gecko)"


def _android(version: int, model: str, chrome: int) -> str:
    device = f"Linux; Android {version}; {model}"
    return f"Mozilla/5.0 ({device}) {_CHROME}/{chrome}.0.0.0 Mobile Safari/537.36"


def _desktop(system: str, chrome: int, suffix: str = "") -> str:
    return f"Mozilla/5.0 ({system}) {_CHROME}/{chrome}.0.0.0 Safari/537.36{suffix}"


def _iphone(version: str) -> str:
    system = f"iPhone; CPU iPhone OS {version.replace('.', '_')} like Mac OS X"
    return f"Mozilla/5.0 ({system}) {_WEBKIT} Version/{version} Mobile/15E148 Safari/604.1"


BROWSERS = (
    _android(10, "K", 142),
    _android(10, "K", 141),
    _android(12, "RMX3231", 139),
    _android(13, "M2101K6P", 140),
    _android(13, "CPH2423", 141),
    _android(13, "V2207", 140),
    _android(14, "SM-A156E", 142),
    _android(14, "SM-M146B", 141),
    _android(14, "23076RN4BI", 141),
    _android(15, "Pixel 8a", 142),
    _android(15, "CPH2613", 142),
    _android(11, "Redmi Note 8 Pro", 138) + " SamsungBrowser/27.0",
    _iphone("16.7"),
    _iphone("17.6"),
    _iphone("18.5"),
    _iphone("18.6"),
    f"Mozilla/5.0 (iPad; CPU OS 18_5 like Mac OS X) {_WEBKIT} Version/18.5 Safari/604.1",
    f"Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) {_WEBKIT} Version/18.5 Safari/605.1.15",
    _desktop("Windows NT 10.0; Win64; x64", 142),
    _desktop("Windows NT 10.0; Win64; x64", 141, " Edg/141.0.0.0"),
    _desktop("Windows NT 10.0; Win64; x64", 140, " OPR/124.0.0.0"),
    _desktop("Macintosh; Intel Mac OS X 10_15_7", 142),
    _desktop("X11; Linux x86_64", 141),
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64; rv:144.0) Gecko/20100101 Firefox/144.0",
    "Mozilla/5.0 (X11; Ubuntu; Linux x86_64; rv:143.0) Gecko/20100101 Firefox/143.0",
)

CRAWLERS = (
    "Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)",
    f"Mozilla/5.0 (Linux; Android 6.0.1; Nexus 5X Build/MMB29P) {_CHROME}/141.0.0.0 Mobile "
    "Safari/537.36 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)",
    "Mozilla/5.0 (compatible; bingbot/2.0; +http://www.bing.com/bingbot.htm)",
    "facebookexternalhit/1.1 (+http://www.facebook.com/externalhit_uatext.php)",
    "Mozilla/5.0 (compatible; AhrefsBot/7.0; +http://ahrefs.com/robot/)",
    "Mozilla/5.0 (compatible; SemrushBot/7~bl; +http://www.semrush.com/bot.html)",
    "Mozilla/5.0 (compatible; YandexBot/3.0; +http://yandex.com/bots)",
    "Twitterbot/1.0",
    "TelegramBot (like TwitterBot)",
    "WhatsApp/2.23.20.0",
    "LinkedInBot/1.0 (compatible; Mozilla/5.0; Apache-HttpClient +http://www.linkedin.com)",
    "Mozilla/5.0 (compatible; GPTBot/1.2; +https://openai.com/gptbot)",
)
