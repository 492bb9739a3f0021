from .contact_sheet import contact_sheet, draw_tile

__all__ = ['contact_sheet', 'draw_tile']
